"""mindone's classes, on a CPU with the functions supplied that MindSpore lacks there. Only for tests and a tool.

mindone is the independent reader of what this project writes; training and drawing do not import it. Its models,
schedulers and pipelines are written on ``mindspore.mint``, and on a CPU a third of that ends in "The kernel ...
unregistered". ``REPLACEMENTS`` says which names are bound anew, and to what; ``install`` does that once, and only where
the target is a CPU. The replacements take the arguments that mindone uses; tensors are of any shape unless said.
"""

import contextlib
import importlib
import io
import os
import warnings
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

import mindspore as ms
from mindspore import Tensor, ops

from library.device.profile import CPU


def diffusers_class(name: str) -> Any:
    """The class ``mindone.diffusers.<name>``.

    The first call takes seconds, because mindone imports all of its models. What it prints meanwhile (missing PyTorch,
    unknown documentation entries, deprecations of its own) is dropped; errors are raised as they are.

    Raises:
        ValueError: mindone is not installed.
    """
    return _class_of("mindone.diffusers", name)


def transformers_class(name: str) -> Any:
    """The class ``mindone.transformers.<name>``; see ``diffusers_class``."""
    return _class_of("mindone.transformers", name)


def _class_of(module: str, name: str) -> Any:
    install()
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            return getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            raise ValueError(f"{error}; this needs mindone: tools/setup_venv.sh requirements-mindone.txt") from error


def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """Convolution of [B, C, H, W]; weight [out, C / groups, h, w]; padding in pixels, one number or one per axis."""
    y = ops.conv2d(input, weight, None, _pair(stride), "pad", _pair(padding), _pair(dilation), groups)
    return y if bias is None else y + bias.reshape(1, -1, 1, 1)


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    """Layer normalisation over the last axis, or over the last ones that ``normalized_shape`` names."""
    axes = tuple(range(-len(normalized_shape), 0))
    centred = input - input.mean(axes, True)
    y = centred * ops.rsqrt((centred * centred).mean(axes, True) + eps)
    if weight is not None:
        y = y * weight
    return y if bias is None else y + bias


def gelu(input, *, approximate="none"):
    """GELU; approximate is "none" (by the error function) or "tanh"."""
    return ops.gelu(input, approximate)


def pad(input, pad, mode="constant", value=None):
    """Pad the last axis by pad[0], pad[1], the one before by pad[2], pad[3], and so on."""
    return ops.pad(input, tuple(pad), mode, value)


def zeros_like(input, *, dtype=None):
    """Zeros of the input's shape."""
    return ops.zeros(input.shape, dtype or input.dtype)


def arange(start=0, end=None, step=1, *, dtype=None):
    """Numbers from start up to, not including, end; from 0 up to start where end is not given."""
    return ops.arange(start, end, step, dtype=dtype)


def stack(tensors, dim=0):
    """Join equal tensors along a new axis."""
    return ops.stack(tensors, dim)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value[0], value[1]) if isinstance(value, Sequence) else (value, value)


REPLACEMENTS: MappingProxyType[str, Callable[..., Tensor]] = MappingProxyType(
    {
        "mint.nn.layer.conv.conv2d_ext_op": conv2d,  # mint.nn.Conv2d: VAE, UNet
        "ops.layer_norm": layer_norm,  # mint.nn.LayerNorm: UNet, text encoders
        "mint.nn.functional.gelu": gelu,  # UNet, text encoder 2
        "mint.nn.functional.pad": pad,  # VAE's encoder
        "mint.arange": arange,  # time embedding, text encoders
        "mint.zeros_like": zeros_like,  # the pipelines' absent negative prompt
        "mint.stack": stack,  # KDPM2 schedulers
    }
)
"""Name below ``mindspore`` -> what it is bound to; for a layer of mint (``mint.nn.Conv2d``) the function it calls."""


def install() -> None:
    """Bind the names of the table where the target device is a CPU; calling it again changes nothing.

    Layers that exist already keep what they were built with, so call it before a model is built.
    """
    if ms.get_context("device_target") != CPU.name:
        return
    for path, replacement in REPLACEMENTS.items():
        module_name, _, name = path.rpartition(".")
        module = importlib.import_module(f"mindspore.{module_name}")
        assert name in vars(module), f"MindSpore {ms.__version__} has no {path}"
        setattr(module, name, replacement)
