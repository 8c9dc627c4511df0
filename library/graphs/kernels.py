"""Layer maths out of operations that both a CPU and Ascend have, with gradients.

Everything here is a function of values (``library/graphs/values.py``), run by Python when a block is traced: branches
and loops cost a compiled graph nothing. Shapes: R rows, B batch, C channels, H W pixels, T tokens, D width, N heads.
In what devices differ is asked of the values' own trace (``Value.profile``).
"""

import functools
import math
from collections.abc import Callable

import numpy as np
from mindspore import dtype as mstype

from library.graphs import operations as op
from library.graphs.values import Constant, Shape, Value, full, with_gradient

LAYER_NORM_EPS = 1e-5
_INV_SQRT2 = 1.0 / math.sqrt(2.0)
_INV_SQRT_2PI = 1.0 / math.sqrt(2.0 * math.pi)
MIN_QUERIES = 128
"""Attention is not cut into parts of fewer queries."""
TURN_FROM = 2
"""Pixels for each channel of a convolution's result from which turning weights costs less than adding up columns: at
the largest images, and in every adapter, whose first convolution has few channels."""
MAX_COLUMNS = 1 << 24
"""Values in a convolution's columns that are formed at once."""
MAX_KEPT_COLUMNS = 1 << 21
"""Largest number of values in an image's columns that a kernel may keep memory for; 8 MB in float32."""
_MASKED = -1e9
"""Added to the score of a later token; finite, so that a row never turns into NaN."""


# --- layers with weights ----------------------------------------------------------------------------------------------
def dense(rows: Value, weight: Value, bias: Value | None = None, transposed: bool = False) -> Value:
    """Linear layer: rows [R, in] times weight [out, in] transposed, plus bias [out].

    ``transposed`` says that the weight is held as [in, out].
    """
    y = op.matmul(rows, weight) if transposed else op.matmul_nt(rows, weight)
    return y if bias is None else op.bias_add(y, bias)


def conv2d(x_BCHW: Value, weight: Value, bias: Value | None, stride: int, padding: int) -> Value:
    """Square convolution with zero padding; weight [out, in, k, k]; the result is [B, out, H', W']."""
    kernel = weight.shape[2]
    columns = math.prod(x_BCHW.shape[1:]) * kernel**2 // stride**2
    if x_BCHW.profile.own_conv_gradient and kernel > 1 and columns > MAX_KEPT_COLUMNS:
        y = _conv2d_with_own_gradient(x_BCHW, weight, stride, padding)
    else:
        y = op.conv2d(x_BCHW, weight, stride, padding)
    return y if bias is None else op.bias_add(y, bias)


def _conv2d_with_own_gradient(x_BCHW: Value, weight: Value, stride: int, padding: int) -> Value:
    """A convolution; where there are many pixels the gradient of its input is one too, else it is made of columns."""

    def gradient(d: Value, y: Value) -> tuple[Value, Value]:
        out_channels, _, kernel, _ = weight.shape
        if stride == 1 and math.prod(d.shape[2:]) >= TURN_FROM * out_channels:
            d_x = op.conv2d(d, _turned(weight), 1, kernel - 1 - padding)
        else:
            d_x = _folded(d, weight, x_BCHW.shape, stride, padding)
        return d_x, op.conv2d_weight_gradient(d, x_BCHW, weight.shape, stride, padding)

    return with_gradient(lambda x, w: op.conv2d(x, w, stride, padding), gradient, x_BCHW, weight)


def _turned(weight: Value) -> Value:
    """[out, in, k, k] to [in, out, k, k], each k x k turned by 180 degrees: what leads a gradient back."""
    out_channels, channels, kernel, _ = weight.shape
    squares = op.gather_rows(weight.reshape(-1, kernel**2), _places_exchanged(1, out_channels, channels))
    return op.matmul(squares, _reversal(kernel**2)).reshape(channels, out_channels, kernel, kernel)


@functools.cache
def _reversal(count: int) -> Constant:
    """The matrix that turns the order of columns round."""
    return Constant(np.ascontiguousarray(np.eye(count, dtype=np.float32)[::-1]))


def _folded(d: Value, weight: Value, shape: Shape, stride: int, padding: int) -> Value:
    """Gradient of a convolution's input: columns of some channels of an image at a time, each added up at their pixels.

    A part waits for the one before, else the runtime would have the columns of several at once.
    """
    batch, channels, height, width = shape
    out_channels, kernel = weight.shape[0], weight.shape[2]
    columns = channels * kernel**2 * d.size // (batch * out_channels)
    count = next(n for n in range(-(-columns // MAX_COLUMNS), channels + 1) if channels % n == 0)
    length = channels // count
    images: list[Value] = []
    for i in range(batch):
        image = op.narrow(d, 0, i, 1).reshape(out_channels, -1)
        parts: list[Value] = []
        for j in range(count):
            waits_for = parts[-1:] or images[-1:]
            some = op.narrow(weight, 1, j * length, length).reshape(out_channels, -1)
            some = op.matmul_tn(some, op.after(image, *waits_for) if waits_for else image)
            some = some.reshape(1, *some.shape)
            parts.append(op.fold(some, (1, length, height, width), kernel, stride, padding))
        images.append(op.concat(tuple(parts), 1))
    return op.concat(tuple(images), 0)


def group_norm(
    x_BCHW: Value,
    weight: Value,
    bias: Value,
    groups: int,
    eps: float,
    product: Callable[[Value], Value] = lambda y: y,
) -> Value:
    """Group normalisation, statistics in float32.

    ``product``: see ``_centred``.
    """
    batch, channels, height, width = x_BCHW.shape
    weight, bias = weight.astype(mstype.float32), bias.astype(mstype.float32)
    centred, scale = _centred(x_BCHW.reshape(batch * groups, -1), eps, product)
    scale = product(scale)

    def forward(x: Value, weight: Value, bias: Value) -> Value:
        y = centred.reshape(batch * channels, -1) * gain()
        return op.bias_add(y.reshape(x.shape), bias).astype(x.dtype)

    def gain() -> Value:
        per_channel = (scale.reshape(batch, groups, 1) * weight.reshape(1, groups, -1)).reshape(-1, 1)
        return _columns(per_channel, height * width)

    def gradient(d_out: Value, out: Value) -> tuple[Value | None, ...]:
        d_out = d_out.astype(mstype.float32)
        d = d_out.reshape(batch * channels, -1)
        # Of each channel of each image: the sum over its pixels, times its group's scale.
        d_weight = op.sum(d * centred.reshape(batch * channels, -1), -1).reshape(batch, groups, -1)
        d_weight = op.sum(d_weight * scale.reshape(batch, groups, 1), 0).reshape(-1)
        d = _norm_gradient((d * gain()).reshape(batch * groups, -1), centred, scale)
        return d.reshape(x_BCHW.shape).astype(x_BCHW.dtype), d_weight, op.channel_sum(d_out)

    return with_gradient(forward, gradient, x_BCHW, weight, bias)


def layer_norm(rows: Value, weight: Value, bias: Value, product: Callable[[Value], Value] = lambda y: y) -> Value:
    """Layer normalisation of rows with eps 1e-5, statistics in float32.

    ``product``: see ``_centred``.
    """
    weight, bias = weight.astype(mstype.float32), bias.astype(mstype.float32)
    centred, scale = _centred(rows, LAYER_NORM_EPS, product)

    def forward(rows: Value, weight: Value, bias: Value) -> Value:
        return op.bias_add(centred * _outer(scale, weight), bias).astype(rows.dtype)

    def gradient(d_out: Value, out: Value) -> tuple[Value | None, ...]:
        d_out = d_out.astype(mstype.float32)
        d = _norm_gradient(d_out * _outer(scale, weight), centred, scale)
        d_weight = op.matmul_tn(d_out * centred, scale).reshape(-1)
        return d.astype(rows.dtype), d_weight, op.channel_sum(d_out)

    return with_gradient(forward, gradient, rows, weight, bias)


def _centred(rows: Value, eps: float, product: Callable[[Value], Value]) -> tuple[Value, Value]:
    """Rows less their means, and one over each row's standard deviation as a column, both in float32.

    ``product`` is called with the centred rows, which take the place of the rows among what a gradient keeps (see
    ``block.Layers``), unless the rows are half as large.
    """
    centred = rows.astype(mstype.float32)
    centred = centred - _columns(op.mean(centred, -1, keepdims=True), rows.shape[1])
    if rows.dtype == mstype.float32:
        centred = product(centred)
    return centred, op.rsqrt(op.mean(centred * centred, -1, keepdims=True) + eps)


def _norm_gradient(d_scaled: Value, centred: Value, scale: Value) -> Value:
    """Gradient of normalised rows, from the output's gradient times weight and scale.

    With n = centred * scale and g the gradient with respect to n, it is scale * (g - mean(g) - n * mean(g * n)).
    """
    width = centred.shape[1]
    along = op.mean(d_scaled * centred, -1, keepdims=True) * (scale * scale)
    return d_scaled - _columns(op.mean(d_scaled, -1, keepdims=True), width) - centred * _columns(along, width)


def _columns(column_R1: Value, width: int) -> Value:
    """A column in the place of a matrix [R, width] whose columns are all equal."""
    return (
        op.matmul(column_R1, full((1, width), 1.0, column_R1.dtype))
        if column_R1.profile.explicit_broadcast
        else column_R1
    )


def _outer(column_R1: Value, row_D: Value) -> Value:
    """Outer product [R, D]."""
    return op.matmul(column_R1, row_D.reshape(1, -1)) if column_R1.profile.explicit_broadcast else column_R1 * row_D


def row_moments(rows: Value) -> Value:
    """Mean, and mean squared distance from it, of each row: [R, K] to [R, 2] in float32."""
    rows = rows.astype(mstype.float32)
    mean = op.mean(rows, -1, keepdims=True)
    centred = rows - _columns(mean, rows.shape[1])
    return op.concat((mean, op.mean(op.square(centred), -1, keepdims=True)), 1)


def scale_channels(x_BCHW: Value, scale: Value, shift: Value) -> Value:
    """Each channel of each image times a number of its own plus another [B C], in float32."""
    batch, channels, height, width = x_BCHW.shape
    x = x_BCHW.astype(mstype.float32).reshape(1, batch * channels, height, width)
    if x.profile.explicit_broadcast:
        y = op.scale_channels(x, scale, shift)
    else:
        y = op.bias_add(x * scale.reshape(1, -1, 1, 1), shift)
    return y.reshape(x_BCHW.shape).astype(x_BCHW.dtype)


# --- activations ------------------------------------------------------------------------------------------------------
def gelu(x: Value) -> Value:
    """GELU by the error function (not the tanh approximation)."""
    return with_gradient(lambda x: x * _normal_cdf(x), lambda d, y: (d * (_normal_cdf(x) + x * _normal_density(x)),), x)


def gated_gelu(x: Value, product: Callable[[Value], Value] = lambda y: y) -> Value:
    """First half of the last axis times the GELU of the second.

    ``product`` is called with the halves, which take the place of x among what a gradient keeps, and with the normal
    distribution of the second, whose error function takes a CPU as long as a matrix product of that size; what it
    returns is gone on with (see ``block.Layers``).
    """
    value, gate = (product(half) for half in op.split(x, -1, 2))
    cdf = product(_normal_cdf(gate))
    activated = gate * cdf

    def gradient(d: Value, y: Value) -> tuple[Value]:
        slope = cdf + gate * _normal_density(gate)
        return (op.concat((d * activated, d * value * slope), -1),)

    return with_gradient(lambda x: value * activated, gradient, x)


def quick_gelu(x: Value) -> Value:
    """x * sigmoid(1.702 x), the activation of CLIP-L."""
    return x * op.sigmoid(x * 1.702)


def _normal_cdf(x: Value) -> Value:
    return (op.erf(x * _INV_SQRT2) + 1.0) * 0.5


def _normal_density(x: Value) -> Value:
    return op.exp(x * x * -0.5) * _INV_SQRT_2PI


# --- attention --------------------------------------------------------------------------------------------------------
def attention(
    q: Value,
    k: Value,
    v: Value,
    batch: int,
    head_width: int,
    causal: bool = False,
    product: Callable[[Value], Value] = lambda y: y,
) -> Value:
    """Scaled dot-product attention of heads: rows [B T, D], [B S, D], [B S, D] to rows [B T, D].

    ``causal``: a token sees itself and earlier ones only. ``product`` is called with what takes the place of q, k and v
    among what a gradient keeps; what it returns is gone on with (see ``block.Layers``).
    """
    scale = 1.0 / math.sqrt(head_width)
    if q.profile.fused_attention and not causal:
        return _flash(q, k, v, batch, head_width, scale)
    q, k, v = (product(_split_heads(x, batch, head_width)) for x in (q * scale, k, v))
    return _join_heads(_attention_of_heads(q, k, v, causal))


def _attention_of_heads(q: Value, k: Value, v: Value, causal: bool) -> Value:
    """Attention of [B, N, T, H]; the queries come multiplied with the scale of the scores.

    Where attention is nearly even, the gradients of queries and keys are small differences of large numbers. They do
    not depend on what all keys or all values have in common, so that is taken off before it can be rounded; and the
    row's mean of d_p is taken over p itself, not from the shorter sum of out * d_out, whose rounding does not cancel.
    Without the two, recorded gradient norms were off by up to 2e-3 (max_grad_norm, min_snr_gamma).

    Queries are taken in chunks where the scores would take much memory; a chunk waits for the one before, else the
    runtime computes all of them side by side.
    """
    chunks = 1 if causal else _chunks(q, k)
    length = q.shape[2] // chunks

    def forward(q: Value, k: Value, v: Value) -> Value:
        parts: list[Value] = []
        for i in range(chunks):
            queries = op.narrow(q, 2, i * length, length)
            queries = op.after(queries, parts[-1]) if parts else queries
            parts.append(op.batch_matmul(_attention_weights(queries, k, causal), v))
        return op.concat(tuple(parts), 2)

    def gradient(d_out: Value, out: Value) -> tuple[Value, Value, Value]:
        keys, values = _less_common(k), _less_common(v)
        parts: list[tuple[Value, Value, Value]] = []
        for i in range(chunks):
            queries, d_rows = (op.narrow(x, 2, i * length, length) for x in (q, d_out))
            if parts:
                queries, d_rows = op.after(queries, *parts[-1]), op.after(d_rows, *parts[-1])
            d_q, d_k, d_v = chunk_gradient(queries, keys, values, d_rows)
            if parts:
                d_k, d_v = parts[-1][1] + d_k, parts[-1][2] + d_v
            parts.append((d_q, d_k, d_v))
        return op.concat(tuple(d_q for d_q, _, _ in parts), 2), *parts[-1][1:]

    def chunk_gradient(q: Value, keys: Value, values: Value, d_out: Value) -> tuple[Value, Value, Value]:
        p = _attention_weights(q, k, causal)
        d_p = op.batch_matmul_nt(d_out, values)
        d_scores = _softmax_gradient(p.reshape(-1, p.shape[-1]), d_p.reshape(-1, p.shape[-1])).reshape(p.shape)
        return op.batch_matmul(d_scores, keys), op.batch_matmul_tn(d_scores, q), op.batch_matmul_tn(p, d_out)

    return with_gradient(forward, gradient, q, k, v)


def _attention_weights(q: Value, k: Value, causal: bool) -> Value:
    scores = op.batch_matmul_nt(q, k).astype(mstype.float32)
    if causal:
        scores = scores + _later_tokens(q.shape[2])
    return op.softmax(scores).astype(q.dtype)


@functools.cache
def _later_tokens(tokens: int) -> Constant:
    """What is added to scores [tokens, tokens] so that later tokens are not seen."""
    return Constant(np.triu(np.full((tokens, tokens), _MASKED, np.float32), 1))


def _chunks(q: Value, k: Value) -> int:
    """Into how many equal parts the queries are cut."""
    batch, heads, tokens, _ = q.shape
    scores, chunks = batch * heads * tokens * k.shape[2], 1
    while scores > chunks * q.profile.max_scores and tokens % (2 * chunks) == 0 and tokens >= 2 * chunks * MIN_QUERIES:
        chunks = 2 * chunks
    return chunks


def _less_common(x_BNSH: Value) -> Value:
    """Each head's tokens less their mean, by products: MindSpore's mean over an inner axis is slow on a CPU."""
    column = (*x_BNSH.shape[:3], 1)
    share = full(column, 1.0 / x_BNSH.shape[2], x_BNSH.dtype)
    return x_BNSH - op.batch_matmul(full(column, 1.0, x_BNSH.dtype), op.batch_matmul_tn(share, x_BNSH))


def _softmax_gradient(p: Value, d_p: Value) -> Value:
    """Gradient of softmax's input, rows of p being its output; for its order see ``_attention_of_heads``."""
    return p * (d_p - _columns(op.sum(p * d_p, -1, keepdims=True), p.shape[-1]))


def _split_heads(rows: Value, batch: int, head_width: int) -> Value:
    """Rows [B T, D] to [B, N, T, H]."""
    tokens, heads = rows.shape[0] // batch, rows.shape[1] // head_width
    return _exchanged(rows, batch, tokens, heads, head_width).reshape(batch, heads, tokens, head_width)


def _join_heads(x_BNTH: Value) -> Value:
    """[B, N, T, H] to rows [B T, D]."""
    batch, heads, tokens, width = x_BNTH.shape
    return _exchanged(x_BNTH, batch, heads, tokens, width).reshape(batch * tokens, heads * width)


def _exchanged(x: Value, batch: int, first: int, second: int, width: int) -> Value:
    """[B, first, second, width] to [B, second, first, width], whatever the shape that the elements come in."""
    if 1 in (first, second):
        return x
    if not x.profile.gather_heads:
        return op.transpose(x.reshape(batch, first, second, width), (0, 2, 1, 3))
    places = _places_exchanged(batch, first, second)
    back = _places_exchanged(batch, second, first)

    def forward(x: Value) -> Value:
        return op.gather_rows(x.reshape(-1, width), places)

    def gradient(d: Value, y: Value) -> tuple[Value]:
        return (op.gather_rows(d.reshape(-1, width), back).reshape(x.shape),)

    return with_gradient(forward, gradient, x)


@functools.cache
def _places_exchanged(batch: int, first: int, second: int) -> Constant:
    """For each row of [B, second, first] its number in [B, first, second]."""
    places = np.arange(batch * first * second, dtype=np.int32).reshape(batch, first, second)
    return Constant(np.ascontiguousarray(places.transpose(0, 2, 1)).reshape(-1))


def _flash(q: Value, k: Value, v: Value, batch: int, head_width: int, scale: float) -> Value:
    """Fused attention; it exists in half precision only, so float32 goes through bfloat16, which has its range."""
    dtype, width = q.dtype, q.shape[1]
    q, k, v = (x.reshape(batch, -1, width) for x in (q, k, v))
    if dtype == mstype.float32:
        q, k, v = (x.astype(mstype.bfloat16) for x in (q, k, v))
    return op.flash_attention(q, k, v, width // head_width, scale).reshape(-1, width).astype(dtype)


# --- places -----------------------------------------------------------------------------------------------------------
def add_to_channels(x_BCHW: Value, shift_BC: Value) -> Value:
    """Add a number of its own to each channel of each image."""
    batch, channels, height, width = x_BCHW.shape
    flat = op.bias_add(x_BCHW.reshape(1, batch * channels, height, width), shift_BC.reshape(-1))
    return flat.reshape(x_BCHW.shape)


def upsample_nearest_2x(x_BCHW: Value) -> Value:
    """Each pixel becomes a 2 x 2 square."""
    batch, channels, height, width = x_BCHW.shape
    wide = op.tile(x_BCHW.reshape(batch, channels, height, 1, width, 1), (1, 1, 1, 2, 1, 2))
    return wide.reshape(batch, channels, 2 * height, 2 * width)
