"""Give MindSpore's CPU the mint functions that mindone needs and that have a kernel on Ascend only.

mindone's VAE, schedulers and pipelines are written on ``mindspore.mint``. On a CPU about half of it ends in "kernel
... unregistered". The table below says which names are bound anew, and to what; ``install`` does it once per process
and only where the target is a CPU. Nothing else of MindSpore is touched, and our own models do not use mint.
"""

import importlib
import logging
from types import MappingProxyType

import numpy as np

import mindspore as ms
from mindspore import Tensor, ops
from mindspore import dtype as mstype

logger = logging.getLogger(__name__)

_STRIP_BYTES = 64 * 2**20
_SLOW_CONV = tuple(int(part) for part in ms.__version__.split(".")[:2]) >= (2, 8)


def _pair(value):
    return value if isinstance(value, (tuple, list)) else (value, value)


def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """2-D convolution of [B, C, H, W]; padding in pixels (one number, or one per axis) or "same" / "valid"."""
    stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
    if _SLOW_CONV and groups == 1 and tuple(dilation) == (1, 1):
        return _conv2d_in_strips(input, weight, bias, stride, padding)
    edges = (padding[0], padding[1])
    y = ops.conv2d(input, weight, None, stride, "pad", edges, dilation, groups)
    return y if bias is None else y + bias.reshape(1, -1, 1, 1)


def _conv2d_in_strips(x, weight, bias, stride, padding):
    batch, channels, _, width = x.shape
    out_channels, _, kh, kw = weight.shape
    matrix = weight.reshape(out_channels, -1)
    if padding[0] or padding[1]:
        x = ops.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    height, width = x.shape[2:]
    out_h = (height - kh) // stride[0] + 1
    out_w = (width - kw) // stride[1] + 1
    rows = max(1, _STRIP_BYTES // (4 * batch * channels * kh * kw * out_w))
    strips = []
    for first in range(0, out_h, rows):
        count = min(rows, out_h - first)
        part = x[:, :, first * stride[0] : (first + count - 1) * stride[0] + kh]
        if kh == 1 and kw == 1 and stride[0] == 1 and stride[1] == 1:
            col = part.reshape(batch, channels, -1)
        else:
            col = ops.unfold(part, (kh, kw), 1, 0, stride)
        y = ops.matmul(matrix, col)
        strips.append(y.reshape(batch, out_channels, count, out_w))
    y = strips[0] if len(strips) == 1 else ops.cat(strips, 2)
    return y if bias is None else y + bias.reshape(1, -1, 1, 1)


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    axes = tuple(range(-len(normalized_shape), 0))
    mean = input.mean(axes, True)
    c = input - mean
    y = c * ops.rsqrt((c * c).mean(axes, True) + eps)
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return y


def gelu(input, *, approximate="none"):
    return ops.gelu(input, approximate)


def pad(input, pad, mode="constant", value=None):
    return ops.pad(input, tuple(pad), mode, value)


def embedding(input, weight, padding_idx=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False):
    return ops.gather(weight, input, 0)


def baddbmm(input, batch1, batch2, *, beta=1, alpha=1):
    y = ops.bmm(batch1, batch2)
    if alpha != 1:
        y = y * alpha
    return y + input * beta


def zeros_like(input, *, dtype=None):
    return ops.zeros(input.shape, dtype or input.dtype)


def ones_like(input, *, dtype=None):
    return ops.ones(input.shape, dtype or input.dtype)


def full(size, fill_value, *, dtype=None):
    return ops.full(size, fill_value, dtype=dtype)


def full_like(input, fill_value, *, dtype=None):
    return ops.full(input.shape, fill_value, dtype=dtype or input.dtype)


def arange(start=0, end=None, step=1, *, dtype=None):
    return ops.arange(start, end, step, dtype=dtype)


def linspace(start, end, steps, *, dtype=None):
    return ops.linspace(ms.Tensor(start,mstype.float32), ms.Tensor(end,mstype.float32), steps).astype(dtype or mstype.float32)


def stack(tensors, dim=0):
    return ops.stack(tensors, dim)


def repeat_interleave(input, repeats, dim=None, output_size=None):
    return ops.repeat_interleave(input, repeats, dim)


def argmax(input, dim=None, keepdim=False):
    return ops.argmax(input, dim, keepdim)

def cumsum(input, dim, dtype=None):
    return ops.cumsum(input, dim, dtype)


REPLACEMENTS = MappingProxyType({
 "mint.conv2d": conv2d, "mint.nn.functional.conv2d": conv2d, "mint.nn.layer.conv.conv2d_ext_op": conv2d,
 "mint.nn.functional.layer_norm": layer_norm, "ops.layer_norm": layer_norm,
 "mint.nn.functional.gelu": gelu,
 "mint.nn.functional.pad": pad,
 "mint.nn.functional.embedding": embedding, "ops.embedding": embedding,
 "mint.baddbmm": baddbmm, "mint.zeros_like": zeros_like, "mint.ones_like": ones_like, "mint.full": full, "mint.full_like": full_like, "mint.arange": arange, "mint.linspace": linspace, "mint.stack": stack, "mint.repeat_interleave": repeat_interleave, "mint.argmax": argmax, "mint.cumsum": cumsum,
})


def install() -> None:
    for path, fn in REPLACEMENTS.items():
        mod, _, name = path.rpartition(".")
        m = importlib.import_module("mindspore." + mod)
        assert name in vars(m), path
        setattr(m, name, fn)
