"""Layer maths as MindSpore operations that both a CPU and Ascend have, with gradients.

Everything here is a pure function of tensors and is read by the graph compiler, so it keeps to plain operations.
Shapes: B batch, C channels, H W pixels, T tokens, D width, N heads.

The two module constants below are the only place where devices differ; ``device_utils.init_device`` sets them
before anything is compiled.
"""

import math

from mindspore import Tensor, ops
from mindspore import dtype as mstype

UNFOLD_CONV = False
"""Lower k x k convolutions to unfold + matmul: MindSpore 2.10's CPU convolution is 150 times slower than 2.7's."""

FLASH_ATTENTION = False
"""Use Ascend's fused attention; it needs half precision and exists on no other device."""

_INV_SQRT2 = 1.0 / math.sqrt(2.0)


def dense(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Linear layer: x [..., in] times weight [out, in] transposed, plus bias [out]."""
    return ops.dense(x, weight) if bias is None else ops.dense(x, weight, bias)


def conv2d(x_BCHW: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """Square convolution with zero padding; weight [out, in, k, k]; the result is [B, out, H', W']."""
    kernel = weight.shape[2]
    if kernel == 1 and stride == 1:
        return _pointwise(x_BCHW, weight, bias)
    if UNFOLD_CONV:
        return _conv2d_unfolded(x_BCHW, weight, bias, stride, padding)
    if padding == 0:
        y = ops.conv2d(x_BCHW, weight, None, stride, "valid")
    else:
        y = ops.conv2d(x_BCHW, weight, None, stride, "pad", padding)
    return y if bias is None else y + bias.reshape(1, -1, 1, 1)


def _pointwise(x_BCHW: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    batch, channels, height, width = x_BCHW.shape
    y = ops.matmul(weight.reshape(-1, channels), x_BCHW.reshape(batch, channels, height * width))
    if bias is not None:
        y = y + bias.reshape(1, -1, 1)
    return y.reshape(batch, -1, height, width)


def _conv2d_unfolded(x_BCHW: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    batch, _, height, width = x_BCHW.shape
    out_channels, kernel = weight.shape[0], weight.shape[2]
    columns = ops.unfold(x_BCHW, kernel, 1, padding, stride)
    y = ops.matmul(weight.reshape(out_channels, -1), columns)
    if bias is not None:
        y = y + bias.reshape(1, -1, 1)
    out_height = (height + 2 * padding - kernel) // stride + 1
    out_width = (width + 2 * padding - kernel) // stride + 1
    return y.reshape(batch, out_channels, out_height, out_width)


def group_norm(x_BCHW: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Group normalisation over 32 groups, statistics in float32."""
    batch, channels, height, width = x_BCHW.shape
    grouped = x_BCHW.astype(mstype.float32).reshape(batch, 32, -1)
    centred = grouped - grouped.mean(-1, True)
    normed = centred * ops.rsqrt((centred * centred).mean(-1, True) + eps)
    normed = normed.reshape(batch, channels, height * width)
    y = normed * weight.reshape(1, -1, 1) + bias.reshape(1, -1, 1)
    return y.reshape(batch, channels, height, width).astype(x_BCHW.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Layer normalisation over the last axis, statistics in float32."""
    wide = x.astype(mstype.float32)
    centred = wide - wide.mean(-1, True)
    normed = centred * ops.rsqrt((centred * centred).mean(-1, True) + eps)
    return (normed * weight + bias).astype(x.dtype)


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    return x * ops.sigmoid(x)


def gelu(x: Tensor) -> Tensor:
    """GELU by the error function (not the tanh approximation)."""
    return x * (ops.erf(x * _INV_SQRT2) + 1.0) * 0.5


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), the activation of CLIP-L."""
    return x * ops.sigmoid(x * 1.702)


def attention(q_BTD: Tensor, k_BSD: Tensor, v_BSD: Tensor, heads: int, mask_TS: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention; the result is [B, T, D].

    Args:
        q_BTD: queries; D is heads times the head width.
        k_BSD: keys.
        v_BSD: values.
        heads: number of heads.
        mask_TS: added to the scores (0 or a large negative number), or None.
    """
    batch, tokens, width = q_BTD.shape
    head_width = width // heads
    scale = 1.0 / math.sqrt(head_width)
    if FLASH_ATTENTION and mask_TS is None:
        return _flash(q_BTD, k_BSD, v_BSD, heads, scale)
    q = (q_BTD * scale).reshape(batch, tokens, heads, head_width).swapaxes(1, 2)
    k = k_BSD.reshape(batch, -1, heads, head_width).swapaxes(1, 2)
    v = v_BSD.reshape(batch, -1, heads, head_width).swapaxes(1, 2)
    scores = ops.matmul(q, k.swapaxes(2, 3))
    if mask_TS is not None:
        scores = scores + mask_TS
    y = ops.matmul(ops.softmax(scores.astype(mstype.float32), -1).astype(v.dtype), v)
    return y.swapaxes(1, 2).reshape(batch, tokens, width)


def _flash(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
    """Fused attention; it exists in half precision only, so float32 goes through bfloat16, which has its range."""
    dtype = q.dtype
    if dtype == mstype.float32:
        q, k, v = q.astype(mstype.bfloat16), k.astype(mstype.bfloat16), v.astype(mstype.bfloat16)
    return ops.flash_attention_score(q, k, v, heads, scalar_value=scale, input_layout="BSH").astype(dtype)


def upsample_nearest_2x(x_BCHW: Tensor) -> Tensor:
    """Each pixel becomes a 2 x 2 square."""
    batch, channels, height, width = x_BCHW.shape
    wide = ops.tile(x_BCHW.reshape(batch, channels, height, 1, width, 1), (1, 1, 1, 2, 1, 2))
    return wide.reshape(batch, channels, 2 * height, 2 * width)
