"""Layer maths as MindSpore operations that both a CPU and Ascend have, with gradients.

Everything here is a pure function of tensors and is read by the graph compiler, so it keeps to plain operations.
Shapes: B batch, C channels, H W pixels, T tokens, D width, N heads.

The module constants below are the only place where devices differ; ``device_utils.init_device`` sets them before
anything is compiled.
"""

import itertools
import math
from collections.abc import Callable

from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

UNFOLD_CONV = False
"""Lower k x k convolutions to unfold + matmul: MindSpore 2.10's CPU convolution is 150 times slower than 2.7's."""

EXPLICIT_BROADCAST = False
"""Repeat columns by a product with ones: MindSpore's CPU kernels broadcast through an index table of 16 bytes per
value, which they keep for good, and take three times as long."""

FLASH_ATTENTION = False
"""Use Ascend's fused attention; it needs half precision and exists on no other device."""

HEAD_WIDTH = 64  # SDXL: attention heads of the UNet and of both text encoders
GROUPS = 32  # SDXL: every group normalisation
LAYER_NORM_EPS = 1e-5
_HEAD_SCALE = 1.0 / math.sqrt(HEAD_WIDTH)
_INV_SQRT2 = 1.0 / math.sqrt(2.0)
_INV_SQRT_2PI = 1.0 / math.sqrt(2.0 * math.pi)
MAX_SCORES = 1 << 24
"""Attention scores that are computed at once; 64 MB in float32."""
_MASKED = -1e9
"""Added to the score of a later token; finite, so that a row never turns into NaN."""

# Operations made here and not where they are used: functions such as ops.tril look theirs up in a table, which
# MindSpore 2.10 cannot compile inside a gradient; and the compiler reads the source of every function for every graph.
_ROW_MEAN, _ROW_SUM = ops.ReduceMean(keep_dims=True), ops.ReduceSum(keep_dims=True)
_MATMUL_NN, _MATMUL_NT = ops.MatMul(), ops.MatMul(transpose_b=True)
_CONCAT_FIRST, _CONCAT_TOKENS, _CONCAT_LAST, _HALVES = ops.Concat(0), ops.Concat(2), ops.Concat(-1), ops.Split(-1, 2)
_BIAS_ADD, _TRANSPOSE, _TRIL, _ZEROS_LIKE = ops.BiasAdd(), ops.Transpose(), ops.Tril(), ops.ZerosLike()
_RSQRT, _SOFTMAX, _SIGMOID = ops.Rsqrt(), ops.Softmax(-1), ops.Sigmoid()
_EXP, _ERF = ops.Exp(), ops.Erf()
_BATCH_NN, _BATCH_NT, _BATCH_TN = (
    ops.BatchMatMul(),
    ops.BatchMatMul(transpose_b=True),
    ops.BatchMatMul(transpose_a=True),
)


def dense(rows: Tensor, weight: Tensor, bias: Tensor | None = None, transposed: bool = False) -> Tensor:
    """Linear layer: rows [R, in] times weight [out, in] transposed, plus bias [out].

    One matrix product whose gradients are matrix products too; ``ops.dense`` has transposes in its.
    ``transposed`` says that the weight is held as [in, out].
    """
    y = _MATMUL_NN(rows, weight) if transposed else _MATMUL_NT(rows, weight)
    return y if bias is None else _BIAS_ADD(y, bias)


def conv2d(x_BCHW: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """Square convolution with zero padding; weight [out, in, k, k]; the result is [B, out, H', W']."""
    if UNFOLD_CONV:
        y = _conv2d_unfolded(x_BCHW, weight, stride, padding)
    elif padding == 0:
        y = ops.conv2d(x_BCHW, weight, None, stride, "valid")
    else:
        y = ops.conv2d(x_BCHW, weight, None, stride, "pad", padding)
    return y if bias is None else _BIAS_ADD(y, bias)


def _conv2d_unfolded(x_BCHW: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    batch, channels, height, width = x_BCHW.shape
    out_channels, kernel = weight.shape[0], weight.shape[2]
    if kernel == 1 and stride == 1:
        columns = x_BCHW.reshape(batch, channels, height * width)
    else:
        columns = ops.unfold(x_BCHW, kernel, 1, padding, stride)
    y = ops.matmul(weight.reshape(out_channels, -1), columns)
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
        centred, scale = _centre(x.astype(mstype.float32).reshape(batch * GROUPS, -1), self.eps)
        y = centred.reshape(batch * channels, -1) * _columns(self._gain(scale, weight, batch), height * width)
        return _BIAS_ADD(y.reshape(x.shape), bias.astype(mstype.float32)).astype(x.dtype)

    def bprop(self, x, weight, bias, out, d_out):  # type: ignore[no-untyped-def]
        batch, channels, height, width = x.shape
        centred, scale = _centre(x.astype(mstype.float32).reshape(batch * GROUPS, -1), self.eps)
        d = d_out.astype(mstype.float32).reshape(batch * channels, -1)
        d = d * _columns(self._gain(scale, weight, batch), height * width)
        d = _norm_gradient(d.reshape(batch * GROUPS, -1), centred, scale)
        return d.reshape(x.shape).astype(x.dtype), _ZEROS_LIKE(weight), _ZEROS_LIKE(bias)

    def _gain(self, scale, weight, batch):  # type: ignore[no-untyped-def]
        """What each channel of each image is multiplied by: [B C, 1]."""
        return (scale.reshape(batch, GROUPS, 1) * weight.reshape(1, GROUPS, -1)).reshape(-1, 1)


class _LayerNorm(nn.Cell):
    """Layer normalisation with a gradient for x only: its weight and bias are never trained."""

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)

    def construct(self, x, weight, bias):  # type: ignore[no-untyped-def]
        centred, scale = _centre(x.astype(mstype.float32).reshape(-1, x.shape[-1]), LAYER_NORM_EPS)
        y = _BIAS_ADD(centred * _outer(scale, weight), bias.astype(mstype.float32))
        return y.reshape(x.shape).astype(x.dtype)

    def bprop(self, x, weight, bias, out, d_out):  # type: ignore[no-untyped-def]
        centred, scale = _centre(x.astype(mstype.float32).reshape(-1, x.shape[-1]), LAYER_NORM_EPS)
        d = d_out.astype(mstype.float32).reshape(-1, x.shape[-1]) * _outer(scale, weight)
        d = _norm_gradient(d, centred, scale)
        return d.reshape(x.shape).astype(x.dtype), _ZEROS_LIKE(weight), _ZEROS_LIKE(bias)


def _centre(rows: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Rows less their means, and one over each row's standard deviation as a column."""
    centred = rows - _columns(_ROW_MEAN(rows, -1), rows.shape[1])
    return centred, _RSQRT(_ROW_MEAN(centred * centred, -1) + eps)


def _norm_gradient(d_scaled: Tensor, centred: Tensor, scale: Tensor) -> Tensor:
    """Gradient of normalised rows, from the output's gradient times weight and scale.

    With n = centred * scale and g the gradient with respect to n, it is scale * (g - mean(g) - n * mean(g * n)).
    """
    width = centred.shape[1]
    along = _ROW_MEAN(d_scaled * centred, -1) * (scale * scale)
    return d_scaled - _columns(_ROW_MEAN(d_scaled, -1), width) - centred * _columns(along, width)


def _columns(column_R1: Tensor, width: int) -> Tensor:
    """A column in the place of a matrix [R, width] whose columns are all equal."""
    if EXPLICIT_BROADCAST:
        return _MATMUL_NN(column_R1, ops.ones((1, width), column_R1.dtype))
    return column_R1


def _outer(column_R1: Tensor, row_D: Tensor) -> Tensor:
    """Outer product [R, D]."""
    if EXPLICIT_BROADCAST:
        return _MATMUL_NN(column_R1, row_D.reshape(1, -1))
    return column_R1 * row_D


class _GatedGelu(nn.Cell):
    """a * gelu(b) of the two halves of the last axis; GELU by the error function."""

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)

    def construct(self, x):  # type: ignore[no-untyped-def]
        value, gate = _HALVES(x)
        return value * gate * _normal_cdf(gate)

    def bprop(self, x, out, d_out):  # type: ignore[no-untyped-def]
        value, gate = _HALVES(x)
        cdf = _normal_cdf(gate)
        density = _EXP(gate * gate * -0.5) * _INV_SQRT_2PI
        return (_CONCAT_LAST((d_out * gate * cdf, d_out * value * (cdf + gate * density))),)


class _Attention(nn.Cell):
    """Scaled dot-product attention of [B, N, T, 64].

    Where attention is nearly even, the gradients of queries and keys are small differences of large numbers. They do
    not depend on what all keys or all values have in common, so that is taken off before it can be rounded; and the
    row's mean of d_p is taken over p itself, not from the shorter sum of out * d_out, whose rounding does not cancel.
    Without the two, recorded gradient norms were off by up to 2e-3 (max_grad_norm, min_snr_gamma).

    Queries are taken in chunks where the scores would take much memory; ``ops.depend`` makes a chunk wait for the one
    before, else the runtime computes all of them side by side.
    """

    def __init__(self, causal: bool) -> None:
        super().__init__(auto_prefix=False)
        self.causal = causal

    def construct(self, q, k, v):  # type: ignore[no-untyped-def]
        chunks = self._chunks(q, k)
        if chunks == 1:
            return _BATCH_NN(self._weights(q, k), v)
        length = q.shape[2] // chunks
        parts = (_BATCH_NN(self._weights(q[:, :, :length], k), v),)
        for i in range(1, chunks):
            queries = ops.depend(q[:, :, i * length : (i + 1) * length], parts[i - 1])
            parts = parts + (_BATCH_NN(self._weights(queries, k), v),)
        return _CONCAT_TOKENS(parts)

    def bprop(self, q, k, v, out, d_out):  # type: ignore[no-untyped-def]
        keys, values = _less_common(k), _less_common(v) * _HEAD_SCALE
        chunks = self._chunks(q, k)
        if chunks == 1:
            return self._gradient(q, k, keys, values, d_out)
        length = q.shape[2] // chunks
        d_q, d_k, d_v = self._gradient(q[:, :, :length], k, keys, values, d_out[:, :, :length])
        parts = (d_q,)
        for i in range(1, chunks):
            rows = slice(i * length, (i + 1) * length)
            before = (d_q, d_k, d_v)
            queries, d_rows = ops.depend(q[:, :, rows], before), ops.depend(d_out[:, :, rows], before)
            d_q, more_k, more_v = self._gradient(queries, k, keys, values, d_rows)
            parts, d_k, d_v = parts + (d_q,), d_k + more_k, d_v + more_v
        return _CONCAT_TOKENS(parts), d_k, d_v

    def _gradient(self, q, k, keys, values, d_out):  # type: ignore[no-untyped-def]
        # The values come multiplied with the scale of the scores, which so is in the gradients of queries and keys.
        p = self._weights(q, k)
        d_p = _BATCH_NT(d_out, values)
        d_scores = _softmax_gradient(p.reshape(-1, p.shape[-1]), d_p.reshape(-1, p.shape[-1])).reshape(p.shape)
        return _BATCH_NN(d_scores, keys), _BATCH_TN(d_scores, q), _BATCH_TN(p, d_out)

    def _weights(self, q, k):  # type: ignore[no-untyped-def]
        scores = _BATCH_NT(q * _HEAD_SCALE, k).astype(mstype.float32)
        if self.causal:
            tokens = q.shape[2]
            scores = scores + (1.0 - _TRIL(ops.ones((tokens, tokens), mstype.float32))) * _MASKED
        return _SOFTMAX(scores).astype(q.dtype)

    def _chunks(self, q, k):  # type: ignore[no-untyped-def]
        """Into how many equal parts the queries are cut."""
        if self.causal:
            return 1
        batch, heads, tokens, _ = q.shape
        chunks = 1
        while batch * heads * tokens * k.shape[2] > chunks * MAX_SCORES and tokens % (2 * chunks) == 0:
            chunks = 2 * chunks
        return chunks


def _less_common(x_BNSH: Tensor) -> Tensor:
    """Each head's tokens less their mean, by products: MindSpore's mean over an inner axis is slow on a CPU."""
    column = x_BNSH.shape[:3] + (1,)
    share = ops.fill(x_BNSH.dtype, column, 1.0 / x_BNSH.shape[2])
    return x_BNSH - _BATCH_NN(ops.ones(column, x_BNSH.dtype), _BATCH_TN(share, x_BNSH))


def _softmax_gradient(p: Tensor, d_p: Tensor) -> Tensor:
    """Gradient of softmax's input, rows of p being its output; see ``_Attention`` for the order of operations."""
    return p * (d_p - _columns(_ROW_SUM(p * d_p, -1), p.shape[-1]))


class _Known(nn.Cell):
    """A value that was computed before, in the place of its computation; the gradient goes to the computation."""

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)

    def construct(self, computed, value):  # type: ignore[no-untyped-def]
        return value

    def bprop(self, computed, value, out, d_out):  # type: ignore[no-untyped-def]
        return d_out, _ZEROS_LIKE(value)


class _SplitFlat(nn.Cell):
    """A flat vector into scaled tensors, neighbours of equal shape and factor by one operation.

    The gradient is put together in the same way, where slices would each give a full-length one.
    """

    def __init__(self, pieces: tuple[tuple[tuple[int, ...], float], ...]) -> None:
        super().__init__(auto_prefix=False)
        runs = [(*kind, len(list(equal))) for kind, equal in itertools.groupby(pieces)]
        sizes = [count * math.prod(shape) for shape, _, count in runs]
        counts = [count for _, _, count in runs]
        self.shapes = tuple((count * shape[0], *shape[1:]) for shape, _, count in runs)
        self.factors = tuple(factor for _, factor, _ in runs)
        self.splits = tuple(ops.Split(0, count) for count in counts)
        self.bounds = (0, *itertools.accumulate(sizes))
        self.pieces = (0, *itertools.accumulate(counts))

    def construct(self, flat):  # type: ignore[no-untyped-def]
        pieces = ()
        for i in range(len(self.shapes)):
            run = flat if len(self.shapes) == 1 else flat[self.bounds[i] : self.bounds[i + 1]]
            run = self._scaled(run.reshape(self.shapes[i]), i)
            pieces = pieces + ((run,) if self.pieces[i + 1] - self.pieces[i] == 1 else self.splits[i](run))
        return pieces

    def bprop(self, flat, out, d_out):  # type: ignore[no-untyped-def]
        runs = ()
        for i in range(len(self.shapes)):
            run = d_out[self.pieces[i] : self.pieces[i + 1]]
            run = self._scaled(run[0] if len(run) == 1 else _CONCAT_FIRST(run), i)
            runs = runs + (run.reshape(-1),)
        return (runs[0] if len(runs) == 1 else _CONCAT_FIRST(runs),)

    def _scaled(self, run, i):  # type: ignore[no-untyped-def]
        return run if self.factors[i] == 1.0 else run * self.factors[i]


def _normal_cdf(x: Tensor) -> Tensor:
    return (_ERF(x * _INV_SQRT2) + 1.0) * 0.5


def _split_heads(rows: Tensor, batch: int) -> Tensor:
    """Rows [B T, D] to [B, N, T, 64]."""
    return _TRANSPOSE(rows.reshape(batch, -1, rows.shape[1] // HEAD_WIDTH, HEAD_WIDTH), (0, 2, 1, 3))


def _join_heads(x_BNTH: Tensor) -> Tensor:
    """[B, N, T, 64] to rows [B T, D]."""
    return _TRANSPOSE(x_BNTH, (0, 2, 1, 3)).reshape(-1, x_BNTH.shape[1] * HEAD_WIDTH)


_GROUP_NORMS = {eps: _GroupNorm(eps) for eps in (1e-5, 1e-6)}
_LAYER_NORM = _LayerNorm()
_GATED_GELU, _KNOWN = _GatedGelu(), _Known()
_ATTENTION, _CAUSAL_ATTENTION = _Attention(causal=False), _Attention(causal=True)


def make_split(pieces: tuple[tuple[tuple[int, ...], float], ...]) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """A function that cuts a flat vector into tensors; of each its shape, and a factor by which it is multiplied."""
    return _SplitFlat(pieces)


def known(computed: Tensor, value: Tensor) -> Tensor:
    """``value`` in the place of ``computed``, which is then not computed; gradients are those of ``computed``."""
    return _KNOWN(computed, value)


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
    return x * _SIGMOID(x * 1.702)


def attention(q: Tensor, k: Tensor, v: Tensor, batch: int) -> Tensor:
    """Scaled dot-product attention of heads 64 wide: rows [B T, D], [B S, D], [B S, D] to rows [B T, D]."""
    if FLASH_ATTENTION:
        return _flash(q, k, v, batch)
    return _join_heads(_ATTENTION(_split_heads(q, batch), _split_heads(k, batch), _split_heads(v, batch)))


def causal_attention(q: Tensor, k: Tensor, v: Tensor, batch: int) -> Tensor:
    """The same where a token sees itself and earlier ones only."""
    return _join_heads(_CAUSAL_ATTENTION(_split_heads(q, batch), _split_heads(k, batch), _split_heads(v, batch)))


def _flash(q: Tensor, k: Tensor, v: Tensor, batch: int) -> Tensor:
    """Fused attention; it exists in half precision only, so float32 goes through bfloat16, which has its range."""
    dtype, width = q.dtype, q.shape[1]
    q, k, v = q.reshape(batch, -1, width), k.reshape(batch, -1, width), v.reshape(batch, -1, width)
    if dtype == mstype.float32:
        q, k, v = q.astype(mstype.bfloat16), k.astype(mstype.bfloat16), v.astype(mstype.bfloat16)
    heads = width // HEAD_WIDTH
    y = ops.flash_attention_score(q, k, v, heads, scalar_value=_HEAD_SCALE, input_layout="BSH")
    return y.reshape(-1, width).astype(dtype)


def add_to_channels(x_BCHW: Tensor, shift_BC: Tensor) -> Tensor:
    """Add a number of its own to each channel of each image."""
    batch, channels, height, width = x_BCHW.shape
    flat = _BIAS_ADD(x_BCHW.reshape(1, batch * channels, height, width), shift_BC.reshape(-1))
    return flat.reshape(x_BCHW.shape)


def upsample_nearest_2x(x_BCHW: Tensor) -> Tensor:
    """Each pixel becomes a 2 x 2 square."""
    batch, channels, height, width = x_BCHW.shape
    wide = ops.tile(x_BCHW.reshape(batch, channels, height, 1, width, 1), (1, 1, 1, 2, 1, 2))
    return wide.reshape(batch, channels, 2 * height, 2 * width)
