"""Every operation is the formula that its name says, and its gradient is that formula's slope (``formulas.py``)."""

import inspect
import math

import numpy as np
import pytest
from mindspore import Tensor
from mindspore import dtype as mstype

from library.device.profile import CPU
from library.graphs import operations as op
from library.graphs.random import uniform
from library.graphs.values import Constant, Trace, Value
from tests.parity.formulas import Case, arrays_of, assert_close, exact_value, patches, scattered, value_and_slopes
from tests.parity.traced import value_and_gradients

pytestmark = pytest.mark.usefixtures("device")

TOLERANCE = 3e-6
"""Relative to the largest value, or to 1: sums of up to 100 float32 products, of numbers of about 1."""

IDS = np.array([[2, 0], [2, 3]], np.int32)
A, B, ROW, COLUMN, SCALAR = (4, 6), (4, 6), (6,), (4, 1), ()
DIAGONAL = np.float32(4 * np.eye(3))
IMAGE, KERNEL = (2, 3, 6, 4), (5, 3, 3, 3)


# --- a few formulas that are longer than a line -----------------------------------------------------------------------
def swapped(x: np.ndarray) -> np.ndarray:
    return x.swapaxes(-1, -2)


def each_channel(numbers: np.ndarray) -> np.ndarray:
    return numbers.reshape(-1, 1, 1)


def at_channels(x: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return x + bias.reshape(-1, *(1,) * (x.ndim - 2))


def error_function(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf)(x)


def soft_maximum(x: np.ndarray) -> np.ndarray:
    e = np.exp(x)
    return e / e.sum(-1, keepdims=True)


def numbers() -> Constant:
    return Constant(IDS)


def added_up(rows: np.ndarray) -> np.ndarray:
    return np.stack([rows[IDS.reshape(-1) == i].sum(0) for i in range(5)])


# --- cases ------------------------------------------------------------------------------------------------------------
CASES: dict[str, Case] = {
    "x + y": Case(lambda x, y: x + y, lambda x, y: x + y, (A, B)),
    "x + row": Case(lambda x, y: x + y, lambda x, y: x + y, (A, ROW)),
    "column + row": Case(lambda x, y: x + y, lambda x, y: x + y, (COLUMN, ROW)),
    "x + 2": Case(lambda x: x + 2.0, lambda x: x + 2, (A,)),
    "2 + x": Case(lambda x: 2.0 + x, lambda x: x + 2, (A,)),
    "x - y": Case(lambda x, y: x - y, lambda x, y: x - y, (A, B)),
    "scalar - x": Case(lambda x, y: x - y, lambda x, y: x - y, (SCALAR, A)),
    "x - column": Case(lambda x, y: x - y, lambda x, y: x - y, (A, COLUMN)),
    "x - 2": Case(lambda x: x - 2.0, lambda x: x - 2, (A,)),
    "2 - x": Case(lambda x: 2.0 - x, lambda x: 2 - x, (A,)),
    "x * y": Case(lambda x, y: x * y, lambda x, y: x * y, (A, B)),
    "x * row": Case(lambda x, y: x * y, lambda x, y: x * y, (A, ROW)),
    "column * x": Case(lambda x, y: x * y, lambda x, y: x * y, (COLUMN, A)),
    "x * scalar": Case(lambda x, y: x * y, lambda x, y: x * y, (A, SCALAR)),
    "images * factors": Case(lambda x, y: x * y, lambda x, y: x * y, (IMAGE, (2, 1, 1, 1))),
    "tokens * positions": Case(lambda x, y: x * y, lambda x, y: x * y, ((2, 3, 4), (3, 4))),
    "x * 2": Case(lambda x: x * 2.0, lambda x: x * 2, (A,)),
    "2 * x": Case(lambda x: 2.0 * x, lambda x: x * 2, (A,)),
    "x * x": Case(lambda x: x * x + x, lambda x: x * x + x, (A,)),
    "x / y": Case(lambda x, y: x / y, lambda x, y: x / y, (A, B), positive=True),
    "x / column": Case(lambda x, y: x / y, lambda x, y: x / y, (A, COLUMN), positive=True),
    "row / x": Case(lambda x, y: x / y, lambda x, y: x / y, (ROW, A), positive=True),
    "x / 3": Case(lambda x: x / 3.0, lambda x: x / 3, (A,)),
    "3 / x": Case(lambda x: 3.0 / x, lambda x: 3 / x, (A,), positive=True),
    "-x": Case(lambda x: -x, lambda x: -x, (A,)),
    "reshape": Case(lambda x: x.reshape(2, -1, 3), lambda x: x.reshape(2, 4, 3), (A,)),
    "astype": Case(lambda x: x.astype(mstype.float32) * 2.0, lambda x: x * 2, (A,)),
    "matmul": Case(op.matmul, lambda a, b: a @ b, ((4, 6), (6, 8))),
    "matmul_nt": Case(op.matmul_nt, lambda a, b: a @ b.T, ((4, 6), (8, 6))),
    "matmul_tn": Case(op.matmul_tn, lambda a, b: a.T @ b, ((6, 4), (6, 8))),
    "batch_matmul": Case(op.batch_matmul, lambda a, b: a @ b, ((2, 2, 3, 4), (2, 2, 4, 5))),
    "batch_matmul_nt": Case(op.batch_matmul_nt, lambda a, b: a @ swapped(b), ((2, 2, 3, 4), (2, 2, 5, 4))),
    "batch_matmul_tn": Case(op.batch_matmul_tn, lambda a, b: swapped(a) @ b, ((2, 2, 4, 3), (2, 2, 4, 5))),
    "matrix_inverse": Case(
        lambda x: op.matrix_inverse(Constant(DIAGONAL) + x), lambda x: np.linalg.inv(x + DIAGONAL), ((2, 3, 3),)
    ),
    "sigmoid": Case(op.sigmoid, lambda x: 1 / (1 + np.exp(-x)), (A,)),
    "silu": Case(op.silu, lambda x: x / (1 + np.exp(-x)), (A,)),
    "erf": Case(op.erf, error_function, (A,)),
    "exp": Case(op.exp, np.exp, (A,)),
    "sqrt": Case(op.sqrt, np.sqrt, (A,), positive=True),
    "rsqrt": Case(op.rsqrt, lambda x: x**-0.5, (A,), positive=True),
    "square": Case(op.square, lambda x: x * x, (A,)),
    "abs": Case(op.abs, np.abs, (A,)),
    "sign": Case(lambda x: op.sign(x) + x, lambda x: np.sign(x) + x, (A,)),
    "at_least 0.1": Case(lambda x: op.at_least(x, 0.1) * x, lambda x: (x >= 0.1) * x, (A,)),
    "at_least y": Case(lambda x, y: op.at_least(x, y) * x, lambda x, y: (x >= y) * x, (A, ROW)),
    "maximum": Case(op.maximum, np.maximum, (A, B)),
    "maximum of rows": Case(op.maximum, np.maximum, (ROW, A)),
    "maximum 0.1": Case(lambda x: op.maximum(x, 0.1), lambda x: np.maximum(x, 0.1), (A,)),
    "minimum": Case(op.minimum, np.minimum, (A, B)),
    "minimum of columns": Case(op.minimum, np.minimum, (A, COLUMN)),
    "minimum 0.1": Case(lambda x: op.minimum(x, 0.1), lambda x: np.minimum(x, 0.1), (A,)),
    "softmax": Case(op.softmax, soft_maximum, ((2, 3, 5),)),
    "sum": Case(lambda x: op.sum(x * x), lambda x: np.sum(x * x), (A,)),
    "sum over one axis": Case(lambda x: op.sum(x * x, 1), lambda x: np.sum(x * x, 1), ((2, 3, 4),)),
    "sum over columns, kept": Case(
        lambda x: op.sum(x * x, -1, keepdims=True), lambda x: np.sum(x * x, -1, keepdims=True), (A,)
    ),
    "sum over two axes, kept": Case(
        lambda x: op.sum(x * x, (0, 2), keepdims=True), lambda x: np.sum(x * x, (0, 2), keepdims=True), ((2, 3, 4),)
    ),
    "sum over all, kept": Case(
        lambda x: op.sum(x * x, (0, 1), keepdims=True), lambda x: np.sum(x * x, (0, 1), keepdims=True), (A,)
    ),
    "mean": Case(lambda x: op.mean(x * x), lambda x: np.mean(x * x), (A,)),
    "mean over pixels": Case(lambda x: op.mean(x * x, (2, 3)), lambda x: np.mean(x * x, (2, 3)), (IMAGE,)),
    "mean over rows, kept": Case(
        lambda x: op.mean(x * x, 0, keepdims=True), lambda x: np.mean(x * x, 0, keepdims=True), (A,)
    ),
    "bias_add": Case(op.bias_add, at_channels, (A, ROW)),
    "bias_add to images": Case(op.bias_add, at_channels, (IMAGE, (3,))),
    "channel_sum": Case(lambda x: op.channel_sum(x * x), lambda x: (x * x).sum(0), (A,)),
    "channel_sum of images": Case(lambda x: op.channel_sum(x * x), lambda x: (x * x).sum((0, 2, 3)), (IMAGE,)),
    "scale_channels": Case(
        op.scale_channels, lambda x, scale, shift: x * each_channel(scale) + each_channel(shift), (IMAGE, (3,), (3,))
    ),
    "segment_sum": Case(
        lambda rows: op.segment_sum(rows * rows, numbers().reshape(-1), 5), lambda rows: added_up(rows**2), ((4, 3),)
    ),
    "gather_rows": Case(lambda table: op.gather_rows(table, numbers()), lambda table: table[IDS], ((5, 3),)),
    "transpose": Case(lambda x: op.transpose(x, (2, 0, 1)), lambda x: x.transpose(2, 0, 1), ((2, 3, 4),)),
    "concat": Case(lambda x, y: op.concat((x, y, x), -1), lambda x, y: np.concatenate([x, y, x], -1), (A, (4, 2))),
    "narrow": Case(lambda x: op.narrow(x, 1, 2, 3), lambda x: x[:, 2:5], (A,)),
    "narrow at an end": Case(lambda x: op.narrow(x, 0, 0, 2), lambda x: x[:2], (A,)),
    "split, both parts": Case(
        lambda x: (lambda a, b: a * b)(*op.split(x, -1, 2)), lambda x: x[:, :3] * x[:, 3:], (A,)
    ),
    "split, one part": Case(lambda x: op.split(x, 0, 4)[2], lambda x: x[2:3], (A,)),
    "tile": Case(
        lambda x: op.tile(x * x, (2, 1, 3)), lambda x: np.tile(x * x, (2, 1, 3)), ((1, 4, 1),)
    ),
    "after": Case(lambda x, y: op.after(x, y) * y, lambda x, y: x * y, (A, B)),
}  # fmt: skip


def convolution_cases(stride: int, padding: op.Padding) -> dict[str, Case]:
    way = (stride, padding)
    sides = op.conv_sides(*IMAGE[2:], 3, *way)
    result = (2, 5, *sides)
    columns = (2, 27, math.prod(sides))
    cases = {
        f"conv2d {way}": Case(
            lambda x, w: op.conv2d(x, w, *way),
            lambda x, w: np.einsum("bcijhw,ocij->bohw", patches(x, 3, *way), w),
            (IMAGE, KERNEL),
        ),
        f"conv2d_input_gradient {way}": Case(
            lambda d, w: op.conv2d_input_gradient(d, w, IMAGE, *way),
            lambda d, w: scattered(np.einsum("bohw,ocij->bcijhw", d, w), IMAGE, 3, *way),
            (result, KERNEL),
        ),
        f"conv2d_weight_gradient {way}": Case(
            lambda d, x: op.conv2d_weight_gradient(d, x, KERNEL, *way),
            lambda d, x: np.einsum("bohw,bcijhw->ocij", d, patches(x, 3, *way)),
            (result, IMAGE),
        ),
    }
    if isinstance(padding, int):
        cases |= {
            f"unfold {way}": Case(
                lambda x: op.unfold(x, 3, *way), lambda x: patches(x, 3, *way).reshape(columns), (IMAGE,)
            ),
            f"fold {way}": Case(
                lambda c: op.fold(c, IMAGE, 3, *way), lambda c: scattered(c, IMAGE, 3, *way), (columns,)
            ),
        }
    return cases


for each in ((1, 1), (2, 1), (1, 0), (2, (0, 0, 0, 1)), (1, (1, 0, 2, 1))):
    CASES |= convolution_cases(*each)

WITHOUT_A_CASE = {
    "conv_sides": "a number, not a value",
    "flash_attention": "exists on Ascend only; test_kernels has a stand-in",
}
OPERATORS = {
    "__add__": "x + y", "__radd__": "2 + x", "__sub__": "x - y", "__rsub__": "2 - x", "__mul__": "x * y",
    "__rmul__": "2 * x", "__truediv__": "x / y", "__rtruediv__": "3 / x", "__neg__": "-x",
    "reshape": "reshape", "astype": "astype",
}  # fmt: skip
"""Which case is a value's method's."""
NO_OPERATIONS = {"__init__", "size", "profile"}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_formula(name: str) -> None:
    """Compiled as in training."""
    case = CASES[name]
    arrays = arrays_of(case)
    assert_close(value_and_gradients(case.operation, arrays), value_and_slopes(case, arrays), TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_on_tensors_an_operation_is_carried_out_at_once(name: str) -> None:
    case = CASES[name]
    arrays = arrays_of(case)
    result = case.operation(*map(Tensor, arrays))
    assert isinstance(result, Tensor)
    assert_close([result.asnumpy()], [exact_value(case, arrays)], TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_of_constants_comes_a_constant(name: str) -> None:
    case = CASES[name]
    arrays = arrays_of(case)
    result = case.operation(*map(Constant, arrays))
    assert isinstance(result, Constant) and result.trace is None
    assert_close([result.tensor.asnumpy()], [exact_value(case, arrays)], TOLERANCE)


def test_every_operation_has_a_case() -> None:
    """So that none can be added without a gradient that was looked at."""
    functions = {
        name for name, thing in vars(op).items() if inspect.isfunction(thing) and thing.__module__ == op.__name__
    }
    wrapped = {name for name, thing in vars(op).items() if hasattr(thing, "cache_info")}
    operations = {name for name in functions | wrapped if not name.startswith("_")}
    words = {word for name in CASES for word in name.replace(",", " ").split()}
    assert operations - words == set(WITHOUT_A_CASE)


def test_every_operator_has_a_case() -> None:
    methods = {name for name, thing in vars(Value).items() if inspect.isfunction(thing) or isinstance(thing, property)}
    assert methods - NO_OPERATIONS == set(OPERATORS)
    assert set(OPERATORS.values()) <= set(CASES)


def test_integers_are_refused_on_the_way_of_a_gradient() -> None:
    trace = Trace(CPU)
    key = trace.input((), mstype.int32)
    out = uniform(2, 3, key, 1)
    with pytest.raises(AssertionError, match="no gradient|has none"):
        trace.gradients(out, trace.input((2, 3), mstype.float32), (key,))


def test_a_value_that_was_an_integer_on_the_way_has_no_gradient() -> None:
    trace = Trace(CPU)
    x = trace.input((3,), mstype.float32)
    out = x.astype(mstype.int32).astype(mstype.float32)
    with pytest.raises(AssertionError, match="has none"):
        trace.gradients(out, trace.input((3,), mstype.float32), (x,))


def test_of_equal_numbers_the_first_gets_the_gradient() -> None:
    same = np.ones(3, np.float32)
    for operation in (op.maximum, op.minimum):
        _, d_x, d_y = value_and_gradients(operation, (same, same))
        np.testing.assert_allclose(d_x, np.cos(same), rtol=1e-6)
        assert not d_y.any()
