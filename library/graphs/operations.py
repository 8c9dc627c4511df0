"""The operations that layers are made of, beside those that values have as operators, each with its gradient.

An operation is a MindSpore primitive that both a CPU and Ascend have. Shapes: R rows, B batch, N heads, C channels, H W
pixels. Arguments are values, or tensors (``library/graphs/values.py``). Use it as a module, ``op.sum(x)``: some names
are those of Python's own functions.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from mindspore import dtype as mstype
from mindspore import ops
from mindspore.ops.auto_generate import BiasAddGrad, SiLU, SiLUGrad
from mindspore.ops.operations import Conv2DBackpropInput
from mindspore.ops.operations._grad_ops import Conv2DBackpropFilter

from library.graphs.values import (
    Constant,
    Shape,
    Value,
    apply,
    apply_many,
    elementwise,
    full,
    with_gradient,
    zeros_like,
)

# --- products ---------------------------------------------------------------------------------------------------------
_MATMUL_NN, _MATMUL_NT, _MATMUL_TN = ops.MatMul(), ops.MatMul(transpose_b=True), ops.MatMul(transpose_a=True)
_BATCH_NN, _BATCH_NT, _BATCH_TN = (
    ops.BatchMatMul(),
    ops.BatchMatMul(transpose_b=True),
    ops.BatchMatMul(transpose_a=True),
)
_INVERSE = ops.MatrixInverse()


def matmul(a: Any, b: Any) -> Any:
    """[R, K] times [K, C]."""
    return apply(
        _MATMUL_NN, (a, b), shape=(a.shape[0], b.shape[1]), gradient=lambda d, y: (matmul_nt(d, b), matmul_tn(a, d))
    )


def matmul_nt(a: Any, b: Any) -> Any:
    """[R, K] times [C, K] transposed."""
    return apply(
        _MATMUL_NT, (a, b), shape=(a.shape[0], b.shape[0]), gradient=lambda d, y: (matmul(d, b), matmul_tn(d, a))
    )


def matmul_tn(a: Any, b: Any) -> Any:
    """[K, R] transposed times [K, C]."""
    return apply(
        _MATMUL_TN, (a, b), shape=(a.shape[1], b.shape[1]), gradient=lambda d, y: (matmul_nt(b, d), matmul(a, d))
    )


def batch_matmul(a: Any, b: Any) -> Any:
    """[..., R, K] times [..., K, C]."""
    return apply(
        _BATCH_NN,
        (a, b),
        shape=(*a.shape[:-1], b.shape[-1]),
        gradient=lambda d, y: (batch_matmul_nt(d, b), batch_matmul_tn(a, d)),
    )


def batch_matmul_nt(a: Any, b: Any) -> Any:
    """[..., R, K] times [..., C, K] transposed."""
    return apply(
        _BATCH_NT,
        (a, b),
        shape=(*a.shape[:-1], b.shape[-2]),
        gradient=lambda d, y: (batch_matmul(d, b), batch_matmul_tn(d, a)),
    )


def batch_matmul_tn(a: Any, b: Any) -> Any:
    """[..., K, R] transposed times [..., K, C]."""
    return apply(
        _BATCH_TN,
        (a, b),
        shape=(*a.shape[:-2], a.shape[-1], b.shape[-1]),
        gradient=lambda d, y: (batch_matmul_nt(b, d), batch_matmul(a, d)),
    )


def matrix_inverse(x: Any) -> Any:
    """The inverse of each matrix [..., N, N] of three axes or more, in float32."""
    return apply(
        _INVERSE,
        (x,),
        shape=x.shape,
        gradient=lambda d, y: (-batch_matmul_nt(batch_matmul_tn(y, d), y),),
    )


# --- convolutions -----------------------------------------------------------------------------------------------------
Padding = int | tuple[int, int, int, int]
"""Zero pixels around an image: of one number, or above, below, at the left, at the right."""


@functools.cache
def _conv(kind: Callable[..., Any], channels: int, kernel: int, stride: int, padding: Padding) -> Callable[..., Any]:
    mode = "pad" if any(_sides_of(padding)) else "valid"
    pads = {} if kind is ops.Conv2D else {"pad_list": _sides_of(padding)}  # a forward convolution finds it by itself
    return kind(out_channel=channels, kernel_size=kernel, pad_mode=mode, pad=padding, stride=stride, **pads)


def _sides_of(padding: Padding) -> tuple[int, int, int, int]:
    return (padding,) * 4 if isinstance(padding, int) else padding


def conv2d(x_BCHW: Any, weight: Any, stride: int, padding: Padding) -> Any:
    """Square convolution with zero padding; weight [out, in, k, k]; the result is [B, out, H', W']."""
    batch, _, height, width = x_BCHW.shape
    shape = (batch, weight.shape[0], *conv_sides(height, width, weight.shape[2], stride, padding))
    return apply(
        _conv(ops.Conv2D, weight.shape[0], weight.shape[2], stride, padding),
        (x_BCHW, weight),
        shape=shape,
        gradient=lambda d, y: (
            conv2d_input_gradient(d, weight, x_BCHW.shape, stride, padding),
            conv2d_weight_gradient(d, x_BCHW, weight.shape, stride, padding),
        ),
    )


def conv2d_input_gradient(d: Any, weight: Any, shape: Shape, stride: int, padding: Padding) -> Any:
    """Gradient of a convolution's input, which has this shape, from that of its result."""
    return apply(
        _conv(Conv2DBackpropInput, weight.shape[0], weight.shape[2], stride, padding),
        (d, weight),
        (shape,),
        shape=shape,
        gradient=lambda d_x, y: (
            conv2d(d_x, weight, stride, padding),
            conv2d_weight_gradient(d, d_x, weight.shape, stride, padding),
        ),
    )


def conv2d_weight_gradient(d: Any, x_BCHW: Any, shape: Shape, stride: int, padding: Padding) -> Any:
    """Gradient of a convolution's weight, which has this shape, from that of its result."""
    return apply(
        _conv(Conv2DBackpropFilter, shape[0], shape[2], stride, padding),
        (d, x_BCHW),
        (shape,),
        shape=shape,
        gradient=lambda d_weight, y: (
            conv2d(x_BCHW, d_weight, stride, padding),
            conv2d_input_gradient(d, d_weight, x_BCHW.shape, stride, padding),
        ),
    )


def conv_sides(height: int, width: int, kernel: int, stride: int, padding: Padding) -> tuple[int, int]:
    """Height and width of a convolution's result."""
    above, below, left, right = _sides_of(padding)
    return (height + above + below - kernel) // stride + 1, (width + left + right - kernel) // stride + 1


def unfold(x_BCHW: Any, kernel: int, stride: int, padding: int) -> Any:
    """The pixels that each place of a convolution sees, as columns: [B, C k k, H' W']."""
    batch, channels, height, width = x_BCHW.shape
    places = math.prod(conv_sides(height, width, kernel, stride, padding))
    return apply(
        ops.unfold,
        (x_BCHW,),
        (kernel, 1, padding, stride),
        shape=(batch, channels * kernel * kernel, places),
        gradient=lambda d, y: (fold(d, x_BCHW.shape, kernel, stride, padding),),
    )


def fold(columns: Any, shape: Shape, kernel: int, stride: int, padding: int) -> Any:
    """The sum of all columns at the pixels that they came from, [B, C, H, W]."""
    return apply(
        ops.fold,
        (columns, _sides(*shape[2:])),
        (kernel, 1, padding, stride),
        shape=shape,
        gradient=lambda d, y: (unfold(d, kernel, stride, padding), None),
    )


@functools.cache
def _sides(height: int, width: int) -> Constant:
    return Constant(np.array((height, width), np.int32))


# --- single elements --------------------------------------------------------------------------------------------------
_SIGMOID, _SILU, _SILU_GRAD = ops.Sigmoid(), SiLU(), SiLUGrad()
_ERF, _EXP, _SQRT, _RSQRT, _SQUARE = ops.Erf(), ops.Exp(), ops.Sqrt(), ops.Rsqrt(), ops.Square()
_ABS, _SIGN, _MAXIMUM, _MINIMUM, _AT_LEAST = ops.Abs(), ops.Sign(), ops.Maximum(), ops.Minimum(), ops.GreaterEqual()


def _alike(function: Callable[..., Any], x: Any, slope: Callable[[Value, Value], Value]) -> Any:
    """A function of each element; ``slope(d, y)`` is the gradient."""
    return apply(function, (x,), shape=x.shape, gradient=lambda d, y: (slope(d, y),))


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    return _alike(_SIGMOID, x, lambda d, y: d * (y - y * y))


def silu(x: Any) -> Any:
    """x * sigmoid(x)."""
    return _alike(_SILU, x, lambda d, y: apply(_SILU_GRAD, (d, x), shape=x.shape))


def erf(x: Any) -> Any:
    """The error function."""
    return _alike(_ERF, x, lambda d, y: d * exp(-square(x)) * (2.0 / math.sqrt(math.pi)))


def exp(x: Any) -> Any:
    """e to the power of x."""
    return _alike(_EXP, x, lambda d, y: d * y)


def sqrt(x: Any) -> Any:
    """The square root; its gradient is infinite at 0."""
    return _alike(_SQRT, x, lambda d, y: d * 0.5 / y)


def rsqrt(x: Any) -> Any:
    """One over the square root."""
    return _alike(_RSQRT, x, lambda d, y: d * y * square(y) * -0.5)


def square(x: Any) -> Any:
    """x * x."""
    return _alike(_SQUARE, x, lambda d, y: d * (x * 2.0))


def abs(x: Any) -> Any:
    """The absolute value; its gradient is 0 at 0."""
    return _alike(_ABS, x, lambda d, y: d * sign(x))


def sign(x: Any) -> Any:
    """-1.0, 0.0 or 1.0; its gradient is 0 everywhere."""
    return _alike(_SIGN, x, lambda d, y: zeros_like(x))


def at_least(x: Any, y: Any) -> Any:
    """1.0 where x is at least y, a value or a number, else 0.0, in float32; its gradient is 0 everywhere."""

    def compare(*operands: Any) -> Any:
        numbers = () if len(operands) == 2 else (y,)
        shape = np.broadcast_shapes(*(operand.shape for operand in operands))
        return apply(_AT_LEAST, operands, numbers, shape=shape, dtype=mstype.bool_).astype(mstype.float32)

    operands = (x, y) if isinstance(y, Value) else (x,)
    return with_gradient(compare, lambda d, out: tuple(map(zeros_like, operands)), *operands)


def maximum(x: Any, y: Any) -> Any:
    """The larger of x and y, a value or a number; where both are equal, the gradient is x's."""
    return _chosen(_MAXIMUM, x, y, lambda: at_least(x, y))


def minimum(x: Any, y: Any) -> Any:
    """The smaller of x and y, a value or a number; where both are equal, the gradient is x's."""
    return _chosen(_MINIMUM, x, y, lambda: at_least(-x, -y))


def _chosen(function: Callable[..., Any], x: Any, y: Any, is_x: Callable[[], Value]) -> Any:
    return elementwise(
        function, x, y, lambda d, out: d * is_x().astype(d.dtype), lambda d, out: d * (1.0 - is_x()).astype(d.dtype)
    )


# --- sums -------------------------------------------------------------------------------------------------------------
_SUM, _KEEPING_SUM = ops.ReduceSum(), ops.ReduceSum(keep_dims=True)
_MEAN, _KEEPING_MEAN = ops.ReduceMean(), ops.ReduceMean(keep_dims=True)
_BIAS_ADD, _BIAS_ADD_GRAD, _SEGMENT_SUM = ops.BiasAdd(), BiasAddGrad(), ops.UnsortedSegmentSum()
_SOFTMAX, _BATCH_NORM = ops.Softmax(-1), ops.BatchNorm(is_training=False, epsilon=1e-12)

Axes = int | tuple[int, ...] | None
"""Over which axes to sum: one, several, or all of them."""


def sum(x: Any, axes: Axes = None, keepdims: bool = False) -> Any:
    """The sum over some axes, which are left out, or kept with size 1."""
    return _reduced(_KEEPING_SUM if keepdims else _SUM, x, axes, keepdims, is_mean=False)


def mean(x: Any, axes: Axes = None, keepdims: bool = False) -> Any:
    """The mean over some axes, which are left out, or kept with size 1."""
    return _reduced(_KEEPING_MEAN if keepdims else _MEAN, x, axes, keepdims, is_mean=True)


def _reduced(function: Callable[..., Any], x: Any, axes: Axes, keepdims: bool, is_mean: bool) -> Any:
    every = tuple(range(len(x.shape)))
    axes = every if axes is None else tuple(every[axis] for axis in (axes if isinstance(axes, tuple) else (axes,)))
    kept = tuple(1 if i in axes else size for i, size in enumerate(x.shape))
    share = math.prod(kept) / math.prod(x.shape) if is_mean else 1.0

    def gradient(d: Value, y: Value) -> tuple[Value]:
        if axes == every:
            return (full(x.shape, share, x.dtype) * d,)
        d = (d * share if is_mean else d).reshape(kept)
        return (tile(d, tuple(x.shape[i] if i in axes else 1 for i in every)),)

    shape = kept if keepdims else tuple(size for i, size in enumerate(x.shape) if i not in axes)
    return apply(function, (x,), (axes,), shape=shape, gradient=gradient)


def softmax(x: Any) -> Any:
    """Over the last axis."""
    return _alike(_SOFTMAX, x, lambda d, y: y * (d - sum(d * y, -1, keepdims=True)))


def bias_add(x: Any, bias: Any) -> Any:
    """Add a number of its own to each channel: x [R, C] or [B, C, H, W], bias [C]."""
    return apply(_BIAS_ADD, (x, bias), shape=x.shape, gradient=lambda d, y: (d, channel_sum(d)))


def channel_sum(x: Any) -> Any:
    """The sum of each channel: x [R, C] or [B, C, H, W] to [C]."""
    return apply(_BIAS_ADD_GRAD, (x,), shape=(x.shape[1],), gradient=lambda d, y: (bias_add(zeros_like(x), d),))


def segment_sum(rows: Any, ids: Any, count: int) -> Any:
    """A table [count, D] in which each of the rows [R, D] is added at the place that its number [R] says."""
    return apply(
        _SEGMENT_SUM,
        (rows, ids),
        (count,),
        shape=(count, rows.shape[1]),
        gradient=lambda d, y: (gather_rows(d, ids), None),
    )


def scale_channels(x_BCHW: Any, scale: Any, shift: Any) -> Any:
    """Each channel times a number of its own [C] plus another [C], float32, in one go.

    It is a batch normalisation of mean 0 and variance 1; epsilon is too small to change that 1 in float32.
    """
    zeros, ones = (full(scale.shape, number, scale.dtype) for number in (0.0, 1.0))

    def gradient(d_outputs: tuple[Value, ...], outputs: tuple[Value, ...]) -> tuple[Value | None, ...]:
        d = d_outputs[0]
        return scale_channels(d, scale, zeros), channel_sum(d * x_BCHW), channel_sum(d), None, None

    shapes = (x_BCHW.shape, *(scale.shape,) * 4)
    return apply_many(_BATCH_NORM, (x_BCHW, scale, shift, zeros, ones), shapes, gradient)[0]


# --- places -----------------------------------------------------------------------------------------------------------
_TRANSPOSE, _SLICE, _TILE, _GATHER, _DEPEND = ops.Transpose(), ops.Slice(), ops.Tile(), ops.Gather(), ops.Depend()


@functools.cache
def _concat(axis: int) -> Callable[..., Any]:
    return ops.Concat(axis)


@functools.cache
def _split(axis: int, count: int) -> Callable[..., Any]:
    return ops.Split(axis, count)


def transpose(x: Any, order: tuple[int, ...]) -> Any:
    """The axes in another order."""
    inverse = tuple(order.index(i) for i in range(len(order)))
    shape = tuple(x.shape[i] for i in order)
    return apply(_TRANSPOSE, (x,), (order,), shape=shape, gradient=lambda d, y: (transpose(d, inverse),))


def concat(parts: tuple[Any, ...], axis: int) -> Any:
    """Values side by side along an axis."""
    if len(parts) == 1:
        return parts[0]
    axis = axis % len(parts[0].shape)
    sizes = [part.shape[axis] for part in parts]
    *starts, end = itertools.accumulate(sizes, initial=0)
    shape = (*parts[0].shape[:axis], end, *parts[0].shape[axis + 1 :])

    def gradient(d: Value, y: Value) -> tuple[Value, ...]:
        return tuple(narrow(d, axis, start, size) for start, size in zip(starts, sizes, strict=True))

    return apply(_concat(axis), parts, shape=shape, gradient=gradient, packed_from=0)


def narrow(x: Any, axis: int, start: int, length: int) -> Any:
    """The elements from ``start`` on along an axis."""
    axis = axis % len(x.shape)
    if length == x.shape[axis]:
        return x
    before, behind = x.shape[:axis], x.shape[axis + 1 :]

    def gradient(d: Value, y: Value) -> tuple[Value]:
        around = ((*before, size, *behind) for size in (start, x.shape[axis] - start - length))
        left, right = ((full(shape, 0.0, x.dtype),) if math.prod(shape) else () for shape in around)
        return (concat((*left, d, *right), axis),)

    shape = (*before, length, *behind)
    begin = tuple(start if i == axis else 0 for i in range(len(x.shape)))
    return apply(_SLICE, (x,), (begin, shape), shape=shape, gradient=gradient)


def split(x: Any, axis: int, count: int) -> tuple[Any, ...]:
    """Equal parts along an axis."""
    if count == 1:
        return (x,)
    axis = axis % len(x.shape)
    shape: Shape = (*x.shape[:axis], x.shape[axis] // count, *x.shape[axis + 1 :])
    return apply_many(_split(axis, count), (x,), (shape,) * count, lambda d_parts, parts: (concat(d_parts, axis),))


def tile(x: Any, times: tuple[int, ...]) -> Any:
    """The value repeated along axes of size 1."""
    assert all(count == 1 or size == 1 for count, size in zip(times, x.shape, strict=True))
    axes = tuple(i for i, count in enumerate(times) if count > 1)
    if not axes:
        return x
    shape = tuple(size * count for size, count in zip(x.shape, times, strict=True))
    return apply(_TILE, (x,), (times,), shape=shape, gradient=lambda d, y: (sum(d, axes, keepdims=True),))


def gather_rows(table: Any, ids: Any) -> Any:
    """Rows of a table [V, D] by their numbers, of any shape: [..., D]."""
    count, width = table.shape

    def gradient(d: Value, y: Value) -> tuple[Value | None, ...]:
        return segment_sum(d.reshape(-1, width), ids.reshape(-1), count), None

    return apply(_GATHER, (table, ids), (0,), shape=(*ids.shape, width), gradient=gradient)


def after(x: Any, *others: Any) -> Any:
    """x, which whoever uses it gets only when the others are computed. Their gradients are 0."""
    return apply(
        _DEPEND,
        (x, *others),
        shape=x.shape,
        gradient=lambda d, y: (d, *map(zeros_like, others)),
        packed_from=1,
    )


# --- fused attention --------------------------------------------------------------------------------------------------
_GRADIENT = ops.GradOperation(get_all=True, sens_param=True)


@functools.cache
def _flash(heads: int, scale: float) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def forward(q, k, v):  # type: ignore[no-untyped-def]  # read by the graph compiler
        return ops.flash_attention_score(q, k, v, heads, scalar_value=scale, input_layout="BSH")

    def gradient(q, k, v, d):  # type: ignore[no-untyped-def]  # read by the graph compiler
        return _GRADIENT(forward)(q, k, v, d)

    return forward, gradient


def flash_attention(q: Any, k: Any, v: Any, heads: int, scale: float) -> Any:
    """Ascend's fused attention of [B, T, D] in half precision; its gradient is formed by MindSpore."""
    forward, gradient = _flash(heads, scale)
    shapes = (q.shape, k.shape, v.shape)
    return apply(forward, (q, k, v), shape=q.shape, gradient=lambda d, y: apply_many(gradient, (q, k, v, d), shapes))
