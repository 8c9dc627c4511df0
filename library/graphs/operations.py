"""The operations that layers are made of, beside those that values have as operators, each with its gradient.

An operation is a MindSpore primitive that both a CPU and Ascend have. Shapes: R rows, B batch, N heads, C channels, H W
pixels. Arguments are values, or tensors (``library/graphs/values.py``).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from mindspore import dtype as mstype
from mindspore import ops
from mindspore.ops.auto_generate import BiasAddGrad, SiLU, SiLUGrad
from mindspore.ops.operations import Conv2DBackpropInput
from mindspore.ops.operations._grad_ops import Conv2DBackpropFilter

from library.graphs.values import Constant, Shape, Value, apply, apply_many, full

# --- products ---------------------------------------------------------------------------------------------------------
_MATMUL_NN, _MATMUL_NT, _MATMUL_TN = ops.MatMul(), ops.MatMul(transpose_b=True), ops.MatMul(transpose_a=True)
_BATCH_NN, _BATCH_NT, _BATCH_TN = (
    ops.BatchMatMul(),
    ops.BatchMatMul(transpose_b=True),
    ops.BatchMatMul(transpose_a=True),
)


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
    """[K, R] transposed times [K, C]; without a gradient of its own."""
    return apply(_MATMUL_TN, (a, b), shape=(a.shape[1], b.shape[1]))


def batch_matmul(a: Any, b: Any) -> Any:
    """[..., R, K] times [..., K, C]."""
    return apply(
        _BATCH_NN,
        (a, b),
        shape=(*a.shape[:-1], b.shape[-1]),
        gradient=lambda d, y: (batch_matmul_nt(d, b), batch_matmul_tn(a, d)),
    )


def batch_matmul_nt(a: Any, b: Any) -> Any:
    """[..., R, K] times [..., C, K] transposed; without a gradient of its own."""
    return apply(_BATCH_NT, (a, b), shape=(*a.shape[:-1], b.shape[-2]))


def batch_matmul_tn(a: Any, b: Any) -> Any:
    """[..., K, R] transposed times [..., K, C]; without a gradient of its own."""
    return apply(_BATCH_TN, (a, b), shape=(*a.shape[:-2], a.shape[-1], b.shape[-1]))


# --- convolutions -----------------------------------------------------------------------------------------------------
@functools.cache
def _conv(kind: Callable[..., Any], channels: int, kernel: int, stride: int, padding: int) -> Callable[..., Any]:
    mode = "pad" if padding else "valid"
    pads = {} if kind is ops.Conv2D else {"pad_list": (padding,) * 4}  # a forward convolution finds it by itself
    return kind(out_channel=channels, kernel_size=kernel, pad_mode=mode, pad=padding, stride=stride, **pads)


def conv2d(x_BCHW: Any, weight: Any, stride: int, padding: int) -> Any:
    """Square convolution with zero padding; weight [out, in, k, k]; the result is [B, out, H', W']."""
    batch, _, height, width = x_BCHW.shape

    def gradient(d: Value, y: Value) -> tuple[Value, Value]:
        d_x = apply(_conv(Conv2DBackpropInput, *options), (d, weight), (x_BCHW.shape,), shape=x_BCHW.shape)
        return d_x, conv2d_weight_gradient(d, x_BCHW, weight, stride, padding)

    options = (weight.shape[0], weight.shape[2], stride, padding)
    shape = (batch, weight.shape[0], *conv_sides(height, width, weight.shape[2], stride, padding))
    return apply(_conv(ops.Conv2D, *options), (x_BCHW, weight), shape=shape, gradient=gradient)


def conv2d_weight_gradient(d: Any, x_BCHW: Any, weight: Any, stride: int, padding: int) -> Any:
    """Gradient of a convolution's weight from that of its result; without a gradient of its own."""
    convolution = _conv(Conv2DBackpropFilter, weight.shape[0], weight.shape[2], stride, padding)
    return apply(convolution, (d, x_BCHW), (weight.shape,), shape=weight.shape)


def conv_sides(height: int, width: int, kernel: int, stride: int, padding: int) -> tuple[int, int]:
    """Height and width of a convolution's result."""
    high, wide = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
    return high, wide


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
    """The sum of all columns at the pixels that they came from, [B, C, H, W]; without a gradient of its own."""
    return apply(ops.fold, (columns, _whole_pair(*shape[2:])), (kernel, 1, padding, stride), shape=shape)


@functools.cache
def _whole_pair(height: int, width: int) -> Constant:
    return Constant(np.array((height, width), np.int32))


# --- elements ---------------------------------------------------------------------------------------------------------
_SIGMOID, _SILU, _SILU_GRAD = ops.Sigmoid(), SiLU(), SiLUGrad()
_ERF, _EXP, _RSQRT, _SOFTMAX = ops.Erf(), ops.Exp(), ops.Rsqrt(), ops.Softmax(-1)


def _alike(function: Callable[..., Any], x: Any, gradient: Any = None) -> Any:
    return apply(function, (x,), shape=x.shape, gradient=gradient)


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    return _alike(_SIGMOID, x, lambda d, y: (d * (y - y * y),))


def silu(x: Any) -> Any:
    """x * sigmoid(x)."""
    return _alike(_SILU, x, lambda d, y: (apply(_SILU_GRAD, (d, x), shape=x.shape),))


def erf(x: Any) -> Any:
    """The error function; without a gradient of its own."""
    return _alike(_ERF, x)


def exp(x: Any) -> Any:
    """Without a gradient of its own."""
    return _alike(_EXP, x)


def rsqrt(x: Any) -> Any:
    """One over the square root; without a gradient of its own."""
    return _alike(_RSQRT, x)


def softmax(x: Any) -> Any:
    """Over the last axis; without a gradient of its own."""
    return _alike(_SOFTMAX, x)


# --- sums -------------------------------------------------------------------------------------------------------------
_MEAN, _KEEPING_MEAN, _KEEPING_SUM = (
    ops.ReduceMean(),
    ops.ReduceMean(keep_dims=True),
    ops.ReduceSum(keep_dims=True),
)
_BIAS_ADD, _BIAS_ADD_GRAD = ops.BiasAdd(), BiasAddGrad()


def row_mean(rows: Any) -> Any:
    """[R, K] to [R, 1]; without a gradient of its own."""
    return apply(_KEEPING_MEAN, (rows,), (-1,), shape=(rows.shape[0], 1))


def row_sum(rows: Any) -> Any:
    """[R, K] to [R, 1]; without a gradient of its own."""
    return apply(_KEEPING_SUM, (rows,), (-1,), shape=(rows.shape[0], 1))


def mean(x: Any) -> Any:
    """Of all elements, a scalar."""
    return apply(_MEAN, (x,), ((),), shape=(), gradient=lambda d, y: (full(x.shape, 1.0 / x.size, x.dtype) * d,))


def bias_add(x: Any, bias: Any) -> Any:
    """Add a number of its own to each channel: x [R, C] or [B, C, H, W], bias [C]."""
    return apply(
        _BIAS_ADD, (x, bias), shape=x.shape, gradient=lambda d, y: (d, apply(_BIAS_ADD_GRAD, (d,), shape=bias.shape))
    )


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
    shape = (*parts[0].shape[:axis], sum(sizes), *parts[0].shape[axis + 1 :])

    def gradient(d: Value, y: Value) -> tuple[Value, ...]:
        return tuple(narrow(d, axis, sum(sizes[:i]), size) for i, size in enumerate(sizes))

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
    """Equal parts along an axis; to be used inside ``with_gradient``."""
    if count == 1:
        return (x,)
    axis = axis % len(x.shape)
    shape: Shape = (*x.shape[:axis], x.shape[axis] // count, *x.shape[axis + 1 :])
    return apply_many(_split(axis, count), (x,), (shape,) * count)


def tile(x: Any, times: tuple[int, ...]) -> Any:
    """The value repeated along axes of size 1."""
    assert all(count == 1 or size == 1 for count, size in zip(times, x.shape, strict=True))
    axes = tuple(i for i, count in enumerate(times) if count > 1)
    shape = tuple(size * count for size, count in zip(x.shape, times, strict=True))
    return apply(
        _TILE, (x,), (times,), shape=shape, gradient=lambda d, y: (apply(_KEEPING_SUM, (d,), (axes,), shape=x.shape),)
    )


def gather_rows(table: Any, ids: Any) -> Any:
    """Rows of a table [V, D] by their numbers; without a gradient."""
    return apply(_GATHER, (table, ids), (0,), shape=(*ids.shape, table.shape[1]))


def after(x: Any, *others: Any) -> Any:
    """x, which whoever uses it gets only when the others are computed; to be used inside ``with_gradient``."""
    return apply(_DEPEND, (x, *others), shape=x.shape, packed_from=1)


# --- whole numbers, for random masks: without gradients ---------------------------------------------------------------
_AND, _XOR, _SHIFT, _AT_LEAST = ops.BitwiseAnd(), ops.BitwiseXor(), ops.RightShift(), ops.GreaterEqual()


@functools.cache
def whole(number: int) -> Constant:
    """A constant int32 scalar."""
    return Constant(np.array(number, np.int32))


@functools.cache
def counting(count: int) -> Constant:
    """The constant 0, 1, ..., count - 1 in int32."""
    return Constant(np.arange(count, dtype=np.int32))


def bit_and(x: Any, number: int) -> Any:
    """Bits that both have."""
    return apply(_AND, (x, whole(number)), shape=x.shape)


def bit_xor(x: Any, y: Any) -> Any:
    """Bits that one of two values of the same shape has."""
    return apply(_XOR, (x, y), shape=x.shape)


def shift_right(x: Any, bits: int) -> Any:
    """Divided by a power of two; negative numbers stay negative."""
    return apply(_SHIFT, (x, whole(bits)), shape=x.shape)


def at_least(x: Any, number: float) -> Any:
    """1.0 where x is at least the number, else 0.0."""
    return apply(_AT_LEAST, (x,), (number,), shape=x.shape, dtype=mstype.bool_).astype(mstype.float32)


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
