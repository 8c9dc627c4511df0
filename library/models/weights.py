"""A model's weights on the device, which of them are held the other way round, and blocks over them."""

from collections.abc import Callable, Iterable
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from library.data.images.image_util import import_cv2
from library.graphs.block import PLAIN, Block, LayerOptions

TRANSPOSED = (
    "attn2.to_k",
    "attn2.to_v",
    "ff.net.2",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.out_proj",
    "mlp.fc1",
    "mlp.fc2",
)
"""Local names of the linear layers whose weight is held as [in, out] instead of [out, in].

A product with a transposed factor is slow on a CPU where it has few rows or sums over many columns. One of a layer's
two products, forward and for the gradient of its input, always has one. These are the layers of text tokens, whose
gradient is rarely needed, and the one that narrows (docs/log/performance.md).
"""


def make_block(
    part: str,
    function: Callable[..., Any],
    prefix: str,
    keys: Iterable[str],
    options: LayerOptions = PLAIN,
) -> Block:
    """A block over all keys that begin with the prefix."""
    return named_block(part, function, prefix, (key[len(prefix) :] for key in keys if key.startswith(prefix)), options)


def named_block(
    part: str, function: Callable[..., Any], prefix: str, names: Iterable[str], options: LayerOptions = PLAIN
) -> Block:
    """A block over some keys below a prefix."""
    names = tuple(sorted(names))
    turned = (name.removesuffix(".weight") for name in names if name.endswith(".weight"))
    return Block(part, function, prefix, names, options, tuple(name for name in turned if name in TRANSPOSED))


def held_shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """In which shape a weight of a checkpoint is held."""
    return shape[::-1] if _is_turned(key, shape) else shape


def _is_turned(key: str, shape: tuple[int, ...]) -> bool:
    return key.removesuffix(".weight").endswith(TRANSPOSED) and len(shape) == 2


def to_tensors(arrays: dict[str, np.ndarray], dtype: ms.Type = ms.float32) -> dict[str, Tensor]:
    """Weights as tensors that share the arrays' memory, those of ``TRANSPOSED`` layers turned.

    Args:
        arrays: key -> float32 array as in a checkpoint; emptied on the way, so that replaced arrays are freed at once.
        dtype: type of the tensors.
    """
    tensors = {}
    for key in list(arrays):
        array = arrays.pop(key)
        if _is_turned(key, array.shape):
            array = import_cv2().transpose(array)  # six times as fast as NumPy's
        tensor = Tensor.from_numpy(np.ascontiguousarray(array))
        tensors[key] = tensor if tensor.dtype == dtype else tensor.astype(dtype)
    return tensors
