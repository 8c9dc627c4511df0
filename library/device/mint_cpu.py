"""Give MindSpore's CPU the mint functions that mindone needs and that have a kernel on Ascend only.

mindone's VAE, schedulers and pipelines are written on ``mindspore.mint``. On a CPU a third of it ends in "The kernel
... unregistered". ``REPLACEMENTS`` says which names are bound anew, and to what; ``install`` does that once, and only
where the target is a CPU. Nothing else of MindSpore is touched, and our own models do not use mint.

The replacements take the arguments that mindone uses. Tensors are of any shape unless said otherwise.
"""

import importlib
from collections.abc import Callable, Sequence
from types import MappingProxyType

import mindspore as ms
from mindspore import Tensor, ops

from library.graphs import kernels
from library.graphs.operations import conv_sides

_STRIP_BYTES = 2**28
"""Unfolded columns held at a time (256 MB): a whole 1024 px picture of 256 channels would need 9.7 GB."""


def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """Convolution of [B, C, H, W]; weight [out, C / groups, h, w]; padding in pixels, one number or one per axis."""
    stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
    plain = groups == 1 and dilation == (1, 1) and stride[0] == stride[1] and padding[0] == padding[1]
    if plain and weight.shape[2] == weight.shape[3]:
        return _conv2d_in_strips(input, weight, bias, stride[0], padding[0])
    y = ops.conv2d(input, weight, None, stride, "pad", padding, dilation, groups)
    return y if bias is None else y + bias.reshape(1, -1, 1, 1)


def _conv2d_in_strips(x_BCHW: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """Convolution that works from top to bottom where unfolding all of it would take too much memory."""
    batch, channels, height, width = x_BCHW.shape
    kernel = weight.shape[2]
    out_height, out_width = conv_sides(height, width, kernel, stride, padding)
    rows = max(1, _STRIP_BYTES // (4 * batch * channels * kernel * kernel * out_width))
    if kernel == 1 or rows >= out_height or not kernels.UNFOLD_CONV:
        return kernels.conv2d(x_BCHW, weight, bias, stride, padding)
    x_BCHW = _pad_zeros(x_BCHW, (padding,) * 4)
    strips = []
    for first in range(0, out_height, rows):
        last = min(first + rows, out_height) - 1
        strip = x_BCHW[:, :, first * stride : last * stride + kernel]
        strips.append(kernels.conv2d(strip, weight, bias, stride, 0))
    return ops.cat(strips, 2)


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
    edges = tuple(pad)
    if mode == "constant" and not value and len(edges) == 4 and min(edges) >= 0 and input.ndim == 4:
        return _pad_zeros(input, edges)
    return ops.pad(input, edges, mode, value)


def _pad_zeros(x_BCHW: Tensor, edges: Sequence[int]) -> Tensor:
    """Zeros around pictures (left, right, top, bottom) by concatenation, 15 times faster than ops.pad."""
    left, right, top, bottom = edges
    batch, channels, height, width = x_BCHW.shape
    dtype = x_BCHW.dtype
    if top or bottom:
        above, below = (ops.zeros((batch, channels, rows, width), dtype) for rows in (top, bottom))
        x_BCHW = ops.cat([part for part in (above, x_BCHW, below) if part.shape[2]], 2)
        height += top + bottom
    if left or right:
        before, after = (ops.zeros((batch, channels, height, columns), dtype) for columns in (left, right))
        x_BCHW = ops.cat([part for part in (before, x_BCHW, after) if part.shape[3]], 3)
    return x_BCHW


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


def is_cpu() -> bool:
    """Whether MindSpore computes on the CPU."""
    return ms.get_context("device_target") == "CPU"


def install() -> None:
    """Bind the names of the table where the target device is a CPU; calling it again changes nothing.

    Layers that exist already keep what they were built with, so call it before a model is built.
    """
    if not is_cpu():
        return
    for path, replacement in REPLACEMENTS.items():
        module_name, _, name = path.rpartition(".")
        module = importlib.import_module(f"mindspore.{module_name}")
        assert name in vars(module), f"MindSpore {ms.__version__} has no {path}"
        setattr(module, name, replacement)
