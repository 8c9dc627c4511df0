"""Layer maths as MindSpore operations that both a CPU and Ascend have, with gradients.

Everything here is a pure function of tensors and is read by the graph compiler, so it keeps to plain operations.
Shapes: B batch, C channels, H W pixels, T tokens, D width, N heads.

The two module constants below are the only place where devices differ; ``device_utils.init_device`` sets them
before anything is compiled.
"""

import math
from collections.abc import Callable

from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

UNFOLD_CONV = False
"""Lower k x k convolutions to unfold + matmul: MindSpore 2.10's CPU convolution is 150 times slower than 2.7's."""

FLASH_ATTENTION = False
"""Use Ascend's fused attention; it needs half precision and exists on no other device."""

HEAD_WIDTH = 64  # SDXL: attention heads of the UNet and of both text encoders
GROUPS = 32  # SDXL: every group normalisation
LAYER_NORM_EPS = 1e-5
_HEAD_SCALE = 1.0 / math.sqrt(HEAD_WIDTH)
_INV_SQRT2 = 1.0 / math.sqrt(2.0)
_INV_SQRT_2PI = 1.0 / math.sqrt(2.0 * math.pi)
_MASKED = -1e9
"""Added to the score of a later token; finite, so that a row never turns into NaN."""


_MATMUL_NT = ops.MatMul(transpose_b=True)
_BATCH_NN, _BATCH_NT, _BATCH_TN = (
    ops.BatchMatMul(),
    ops.BatchMatMul(transpose_b=True),
    ops.BatchMatMul(transpose_a=True),
)


def dense(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Linear layer: x [..., in] times weight [out, in] transposed, plus bias [out].

    One matrix product on rows, whose gradients are matrix products too; ``ops.dense`` has transposes in its.
    """
    rows = _MATMUL_NT(x.reshape(-1, x.shape[-1]), weight)
    if bias is not None:
        rows = rows + bias
    return rows.reshape(x.shape[:-1] + (weight.shape[0],))


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


class _GroupNorm(nn.Cell):
    """Group normalisation with a gradient for x only: its weight and bias are never trained."""

    def __init__(self, eps: float) -> None:
        super().__init__(auto_prefix=False)
        self.eps = eps

    def construct(self, x, weight, bias):  # type: ignore[no-untyped-def]
        batch, channels, height, width = x.shape
        normed, _ = self._normed(x)
        y = normed.reshape(batch, channels, -1) * weight.reshape(1, -1, 1) + bias.reshape(1, -1, 1)
        return y.reshape(batch, channels, height, width).astype(x.dtype)

    def bprop(self, x, weight, bias, out, d_out):  # type: ignore[no-untyped-def]
        batch, channels, height, width = x.shape
        normed, scale = self._normed(x)
        d = d_out.astype(mstype.float32).reshape(batch, channels, -1) * weight.reshape(1, -1, 1)
        d = d.reshape(batch, GROUPS, -1)
        d = (d - d.mean(-1, True) - normed * (d * normed).mean(-1, True)) * scale
        d = d.reshape(batch, channels, height, width).astype(x.dtype)
        return d, ops.zeros_like(weight), ops.zeros_like(bias)

    def _normed(self, x):  # type: ignore[no-untyped-def]
        grouped = x.astype(mstype.float32).reshape(x.shape[0], GROUPS, -1)
        centred = grouped - grouped.mean(-1, True)
        scale = ops.rsqrt((centred * centred).mean(-1, True) + self.eps)
        return centred * scale, scale


class _LayerNorm(nn.Cell):
    """Layer normalisation with a gradient for x only: its weight and bias are never trained."""

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)

    def construct(self, x, weight, bias):  # type: ignore[no-untyped-def]
        normed, _ = self._normed(x)
        return (normed * weight + bias).astype(x.dtype)

    def bprop(self, x, weight, bias, out, d_out):  # type: ignore[no-untyped-def]
        normed, scale = self._normed(x)
        d = d_out.astype(mstype.float32) * weight
        d = (d - d.mean(-1, True) - normed * (d * normed).mean(-1, True)) * scale
        return d.astype(x.dtype), ops.zeros_like(weight), ops.zeros_like(bias)

    def _normed(self, x):  # type: ignore[no-untyped-def]
        wide = x.astype(mstype.float32)
        centred = wide - wide.mean(-1, True)
        scale = ops.rsqrt((centred * centred).mean(-1, True) + LAYER_NORM_EPS)
        return centred * scale, scale


class _GatedGelu(nn.Cell):
    """a * gelu(b) of the two halves of the last axis; GELU by the error function."""

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)

    def construct(self, x):  # type: ignore[no-untyped-def]
        half = x.shape[-1] // 2
        gate = x[..., half:]
        return x[..., :half] * gate * _normal_cdf(gate)

    def bprop(self, x, out, d_out):  # type: ignore[no-untyped-def]
        half = x.shape[-1] // 2
        value, gate = x[..., :half], x[..., half:]
        cdf = _normal_cdf(gate)
        density = ops.exp(gate * gate * -0.5) * _INV_SQRT_2PI
        return (ops.concat((d_out * gate * cdf, d_out * value * (cdf + gate * density)), -1),)


class _Attention(nn.Cell):
    """Scaled dot-product attention of heads that are 64 wide.

    In the gradient of softmax the row's mean of d_p is taken over p itself. Equal in exact arithmetic would be the sum
    of out * d_out, which is shorter; but what it rounds differently does not cancel, and queries and keys of nearly
    even attention then have gradients that are off by up to 2e-3 (recording max_grad_norm).
    """

    def __init__(self, causal: bool) -> None:
        super().__init__(auto_prefix=False)
        self.causal = causal

    def construct(self, q, k, v):  # type: ignore[no-untyped-def]
        q, k, v = _split_heads(q), _split_heads(k), _split_heads(v)
        return _join_heads(_BATCH_NN(self._weights(q, k), v))

    def bprop(self, q, k, v, out, d_out):  # type: ignore[no-untyped-def]
        q, k, v = _split_heads(q), _split_heads(k), _split_heads(v)
        p = self._weights(q, k)
        d_out = _split_heads(d_out)
        d_p = _BATCH_NT(d_out, v)
        d_scores = p * (d_p - (p * d_p).sum(-1, keepdims=True)) * _HEAD_SCALE
        d_v = _BATCH_TN(p, d_out)
        return _join_heads(_BATCH_NN(d_scores, k)), _join_heads(_BATCH_TN(d_scores, q)), _join_heads(d_v)

    def _weights(self, q, k):  # type: ignore[no-untyped-def]
        scores = _BATCH_NT(q * _HEAD_SCALE, k).astype(mstype.float32)
        if self.causal:
            tokens = q.shape[2]
            scores = scores + (1.0 - ops.tril(ops.ones((tokens, tokens), mstype.float32))) * _MASKED
        return ops.softmax(scores, -1).astype(q.dtype)


class _SplitFlat(nn.Cell):
    """A flat vector into tensors; the gradient is one concat, where slices would each give a full-length one."""

    def __init__(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        super().__init__(auto_prefix=False)
        sizes = [math.prod(shape) for shape in shapes]
        self.shapes = shapes
        self.starts = tuple(sum(sizes[:i]) for i in range(len(sizes)))
        self.ends = tuple(sum(sizes[: i + 1]) for i in range(len(sizes)))

    def construct(self, flat):  # type: ignore[no-untyped-def]
        pieces = ()
        for i in range(len(self.shapes)):
            pieces = pieces + (flat[self.starts[i] : self.ends[i]].reshape(self.shapes[i]),)
        return pieces

    def bprop(self, flat, out, d_out):  # type: ignore[no-untyped-def]
        pieces = ()
        for i in range(len(self.shapes)):
            pieces = pieces + (d_out[i].reshape(-1),)
        return (ops.concat(pieces),)


def _normal_cdf(x: Tensor) -> Tensor:
    return (ops.erf(x * _INV_SQRT2) + 1.0) * 0.5


def _split_heads(x_BTD: Tensor) -> Tensor:
    batch, tokens, width = x_BTD.shape
    return ops.transpose(x_BTD.reshape(batch, tokens, width // HEAD_WIDTH, HEAD_WIDTH), (0, 2, 1, 3))


def _join_heads(x_BNTH: Tensor) -> Tensor:
    batch, heads, tokens, width = x_BNTH.shape
    return ops.transpose(x_BNTH, (0, 2, 1, 3)).reshape(batch, tokens, heads * width)


_GROUP_NORMS = {eps: _GroupNorm(eps) for eps in (1e-5, 1e-6)}
_LAYER_NORM = _LayerNorm()
_GATED_GELU = _GatedGelu()
_ATTENTION, _CAUSAL_ATTENTION = _Attention(causal=False), _Attention(causal=True)


def make_split(shapes: tuple[tuple[int, ...], ...]) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """A function that cuts a flat vector into tensors of these shapes."""
    return _SplitFlat(shapes)


def group_norm(x_BCHW: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Group normalisation over 32 groups, statistics in float32; eps is 1e-5 or 1e-6."""
    return _GROUP_NORMS[eps](x_BCHW, weight, bias)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Layer normalisation over the last axis with eps 1e-5, statistics in float32."""
    return _LAYER_NORM(x, weight, bias)


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    return ops.silu(x)


def gelu(x: Tensor) -> Tensor:
    """GELU by the error function (not the tanh approximation)."""
    return x * _normal_cdf(x)


def gated_gelu(x: Tensor) -> Tensor:
    """First half of the last axis times the GELU of the second."""
    return _GATED_GELU(x)


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), the activation of CLIP-L."""
    return x * ops.sigmoid(x * 1.702)


def attention(q_BTD: Tensor, k_BSD: Tensor, v_BSD: Tensor) -> Tensor:
    """Scaled dot-product attention of heads 64 wide: queries, keys, values to [B, T, D]."""
    if FLASH_ATTENTION:
        return _flash(q_BTD, k_BSD, v_BSD)
    return _ATTENTION(q_BTD, k_BSD, v_BSD)


def causal_attention(q_BTD: Tensor, k_BTD: Tensor, v_BTD: Tensor) -> Tensor:
    """The same where a token sees itself and earlier ones only."""
    return _CAUSAL_ATTENTION(q_BTD, k_BTD, v_BTD)


def _flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Fused attention; it exists in half precision only, so float32 goes through bfloat16, which has its range."""
    dtype = q.dtype
    if dtype == mstype.float32:
        q, k, v = q.astype(mstype.bfloat16), k.astype(mstype.bfloat16), v.astype(mstype.bfloat16)
    heads = q.shape[-1] // HEAD_WIDTH
    return ops.flash_attention_score(q, k, v, heads, scalar_value=_HEAD_SCALE, input_layout="BSH").astype(dtype)


def upsample_nearest_2x(x_BCHW: Tensor) -> Tensor:
    """Each pixel becomes a 2 x 2 square."""
    batch, channels, height, width = x_BCHW.shape
    wide = ops.tile(x_BCHW.reshape(batch, channels, height, 1, width, 1), (1, 1, 1, 2, 1, 2))
    return wide.reshape(batch, channels, 2 * height, 2 * width)
