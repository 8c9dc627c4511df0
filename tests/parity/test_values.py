"""Tracing: what is recorded is what was written, gradients are those of calculus, and nothing needless is computed."""

from collections.abc import Callable

import numpy as np
import pytest
from mindspore import Tensor
from mindspore import dtype as mstype

from library.graphs import kernels
from library.graphs import operations as op
from library.graphs.graph_code import GraphFunction, needed_nodes
from library.graphs.stacks import Stack, join_stacks, split_stacks
from library.graphs.values import Trace, Value, full, with_gradient
from tests.parity.traced import gradients, value

pytestmark = pytest.mark.usefixtures("device")

SHAPES = {"x": (4, 6), "y": (4, 6), "wide": (6, 8), "tall": (8, 6), "bias": (6,), "image": (2, 8, 4, 4)}
RNG = np.random.default_rng(0)
ARRAYS = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
ARRAYS["channels"], ARRAYS["shift"] = ARRAYS["tall"][:, 0].copy(), RNG.standard_normal((2, 8)).astype(np.float32)
ARRAYS["kernel"] = RNG.standard_normal((5, 8, 3, 3)).astype(np.float32)

HALVES = "there and back in half precision"
CASES: dict[str, tuple[Callable[..., Value], str]] = {
    "add, subtract, multiply": (lambda x, y: (x + y) * (x - y) * 0.5 + 2.0, "x y"),
    "a value used twice": (lambda x: x * x + x, "x"),
    "matmul": (op.matmul, "x wide"),
    "matmul_nt": (op.matmul_nt, "x tall"),
    "bias of rows": (op.bias_add, "x bias"),
    "bias of channels": (op.bias_add, "image channels"),
    "add_to_channels": (kernels.add_to_channels, "image shift"),
    "reshape, transpose": (lambda x: op.transpose(x.reshape(2, -1, 3), (2, 0, 1)), "x"),
    "batch_matmul": (lambda x, y: op.batch_matmul(x.reshape(2, 2, 6), y.reshape(2, 6, 2)), "x y"),
    "concat": (lambda x, y: op.concat((x, y, x), 1), "x y"),
    "narrow": (lambda x: op.narrow(x, 1, 2, 3), "x"),
    "narrow at an end": (lambda x: op.narrow(x, 0, 0, 2), "x"),
    "silu": (op.silu, "x"),
    "sigmoid": (op.sigmoid, "x"),
    "gelu": (kernels.gelu, "x"),
    "gated_gelu": (kernels.gated_gelu, "x"),
    "quick_gelu": (kernels.quick_gelu, "x"),
    "mean": (lambda x: op.mean(x * x), "x"),
    "convolution": (lambda x, w: kernels.conv2d(x, w, None, 1, 1), "image kernel"),
    "strided convolution": (lambda x, w: kernels.conv2d(x, w, None, 2, 1), "image kernel"),
    "upsample": (kernels.upsample_nearest_2x, "image"),
    HALVES: (lambda x: x.astype(mstype.float16).astype(mstype.float32) * x, "x"),
}


def arrays_of(name: str) -> tuple[Callable[..., Value], tuple[np.ndarray, ...]]:
    function, inputs = CASES[name]
    return function, tuple(ARRAYS[key] for key in inputs.split())


@pytest.mark.parametrize("name", [name for name in CASES if name != HALVES])  # halves are too coarse for slopes
def test_gradients_are_the_slopes(name: str) -> None:
    function, inputs = arrays_of(name)
    d_out = RNG.standard_normal(value(function, inputs, compiled=False).shape).astype(np.float32)
    found = gradients(function, inputs, d_out, compiled=False)
    for i, gradient in enumerate(found):
        direction = RNG.standard_normal(gradient.shape).astype(np.float32)
        ends = []
        for step in (1e-2, -1e-2):
            moved = tuple(x + np.float32(step) * direction if i == j else x for j, x in enumerate(inputs))
            ends.append(float((value(function, moved, compiled=False).astype(np.float64) * d_out).sum()))
        # Central differences of float32 results: what they miss is about 1e-4 of the values' size.
        assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(float((gradient * direction).sum()), rel=5e-3, abs=5e-3)


@pytest.mark.parametrize("name", CASES)
def test_compiled_is_the_same_as_operation_by_operation(name: str) -> None:
    function, inputs = arrays_of(name)
    out = value(function, inputs, compiled=False)
    np.testing.assert_allclose(value(function, inputs), out, rtol=2e-6, atol=2e-6)
    for a, b in zip(
        gradients(function, inputs, np.cos(out)), gradients(function, inputs, np.cos(out), compiled=False), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def square_with_a_gradient_of_ten(x: Value) -> Value:
    return with_gradient(lambda x: x * x, lambda d, y: (d * 10.0,), x)


def test_a_gradient_of_its_own_is_used() -> None:
    x = ARRAYS["x"]
    assert np.array_equal(gradients(square_with_a_gradient_of_ten, (x,), np.ones_like(x))[0], np.full_like(x, 10))


@pytest.mark.parametrize("inside_first", [True, False])
def test_an_operation_inside_such_a_part_and_outside_keeps_both_gradients(inside_first: bool) -> None:
    """Equal operations are recorded once; the one outside must not lose its gradient to the one inside."""

    def function(x: Value) -> Value:
        if inside_first:
            return square_with_a_gradient_of_ten(x) + x * x * 3.0
        return x * x * 3.0 + square_with_a_gradient_of_ten(x)

    x = ARRAYS["x"]
    found = gradients(function, (x,), np.ones_like(x))[0]
    np.testing.assert_allclose(found, 10 + 6 * x, rtol=1e-6)


def test_such_a_part_used_twice_counts_twice() -> None:
    def function(x: Value) -> Value:
        return square_with_a_gradient_of_ten(x) + square_with_a_gradient_of_ten(x)

    x = ARRAYS["x"]
    assert np.array_equal(gradients(function, (x,), np.ones_like(x))[0], np.full_like(x, 20))


def test_equal_operations_are_done_once_and_unused_ones_not_at_all() -> None:
    trace = Trace()
    x = trace.input((4, 6), mstype.float32)
    y = x * 2.0 + x * 2.0
    op.erf(x)
    assert len(trace.nodes) == 3
    assert [node.function.name for node in needed_nodes(trace, (y,))] == ["Mul", "Add"]


def test_numbers_of_another_type_are_other_operations() -> None:
    trace = Trace()
    x = trace.input((4, 6), mstype.int32)
    assert x * 1 is x * 1
    assert x * 1 is not x * 1.0


def test_outputs_that_are_inputs_or_constants_do_not_pass_through_the_graph() -> None:
    trace = Trace()
    x, unused = trace.input((2,), mstype.float32), trace.input((2,), mstype.float32)
    function = GraphFunction(trace, (unused, x), (x, full((2,), 3.0), x + 1.0), compiled=True)
    assert function.used == (1,)
    same, constant, more = (t.asnumpy().tolist() for t in function((None, Tensor(np.array([1.0, 2.0], np.float32)))))
    assert (same, constant, more) == ([1.0, 2.0], [3.0, 3.0], [2.0, 3.0])


def test_an_input_that_the_output_does_not_depend_on_gets_zeros() -> None:
    found = gradients(lambda x, y: x * 2.0, (ARRAYS["x"], ARRAYS["y"]), np.ones((4, 6), np.float32))
    assert not found[1].any() and (found[0] == 2).all()


def test_a_gradient_that_is_not_known_is_refused() -> None:
    with pytest.raises(AssertionError, match="broadcast"):
        gradients(lambda x, bias: x + bias, (ARRAYS["x"], ARRAYS["bias"]), np.ones((4, 6), np.float32))
    with pytest.raises(AssertionError, match="with_gradient"):
        gradients(lambda x: op.split(x, 0, 2)[0], (ARRAYS["x"],), np.ones((2, 6), np.float32))
    with pytest.raises(AssertionError, match="with_gradient"):
        gradients(op.erf, (ARRAYS["x"],), np.ones((4, 6), np.float32))


def test_stacks_are_split_and_joined() -> None:
    stacks = (Stack(2, (2, 3), 1.0), Stack(1, (4,), 0.5), Stack(1, (2, 1), 1.0))
    assert [stack.whole_shape for stack in stacks] == [(4, 3), (4,), (2, 1)]
    flat = np.arange(18, dtype=np.float32)
    arrays = (flat[:12].reshape(4, 3), flat[12:16], flat[16:].reshape(2, 1))
    trace = Trace()
    inputs = [trace.input(array.shape, mstype.float32) for array in arrays]
    tensors = split_stacks(inputs, stacks)
    outputs = (*tensors, join_stacks(tensors, stacks))
    *found, joined = (t.asnumpy() for t in GraphFunction(trace, inputs, outputs, True)([Tensor(a) for a in arrays]))
    expected = [flat[:6].reshape(2, 3), flat[6:12].reshape(2, 3), flat[12:16] * 0.5, flat[16:].reshape(2, 1)]
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    # The gradient of a scaled tensor is scaled once more.
    assert np.array_equal(joined, np.concatenate([flat[:12], flat[12:16] * 0.25, flat[16:]]))
