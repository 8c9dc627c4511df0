"""Weights by rule: every tensor drawn from a seed and its own name, so that no file is needed to agree on them.

The rule is the one by which the recorded reference outputs were made: a standard normal from a generator seeded with
(seed, CRC-32 of the name), scaled by the tensor's rank, rounded to float32.
"""

import math
import zlib
from collections.abc import Iterator, Mapping

import numpy as np

SLICE_ITEMS = 1 << 20
EMBEDDING_SCALE = 0.05
BIAS_SCALE = 0.02
NORM_SCALE = 0.1
LOGIT_SCALE = 4.6052
LORA_UP_SCALE = np.float32(0.05)


def random_weight(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of that name, float32. Holds 8 MB besides its result, whatever the shape."""
    if name.endswith("logit_scale"):
        return np.full(shape, LOGIT_SCALE, np.float32)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    values = np.empty(shape, np.float32)
    flat = values.reshape(-1)
    for begin in range(0, flat.size, SLICE_ITEMS):
        drawn = rng.standard_normal(min(SLICE_ITEMS, flat.size - begin))
        if len(shape) >= 2:
            drawn *= EMBEDDING_SCALE if "embedding" in name else 1 / math.sqrt(math.prod(shape[1:]))
        elif len(shape) == 1:
            drawn = BIAS_SCALE * drawn if name.endswith("bias") else 1 + NORM_SCALE * drawn
        flat[begin : begin + drawn.size] = drawn
    return values


def tiny_weights(seed: int, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, float32 array) of each tensor of a checkpoint, made one at a time, in the order of `shapes`."""
    for name, shape in shapes.items():
        yield name, random_weight(seed, name, shape)


def lora_weights(seed: int, shapes: Mapping[str, tuple[int, ...]], alpha: float) -> Iterator[tuple[str, np.ndarray]]:
    """(name, float32 array) of each tensor of a LoRA.

    Its own keys are the names (``lora_unet_....lora_down.weight``). ``lora_up`` is small, not zero, so that
    ``lora_down`` has a gradient at once; ``alpha`` is the given value.
    """
    for name, shape in shapes.items():
        if name.endswith(".alpha"):
            yield name, np.full(shape, alpha, np.float32)
        else:
            weight = random_weight(seed, name, shape)
            yield name, weight * LORA_UP_SCALE if ".lora_up." in name else weight
