"""Tracing: what is recorded is what was written, gradients are those of calculus, and nothing needless is computed."""

from collections.abc import Callable

import numpy as np
import pytest
from mindspore import Tensor
from mindspore import dtype as mstype

from library.device.profile import CPU
from library.graphs import kernels
from library.graphs import operations as op
from library.graphs.graph_code import GraphFunction, needed_nodes
from library.graphs.stacks import Stack, join_stacks, split_stacks
from library.graphs.values import Trace, Value, full, with_gradient
from tests.parity.traced import gradients, value

pytestmark = pytest.mark.usefixtures("device")

RNG = np.random.default_rng(0)
X, Y = (RNG.standard_normal((4, 6)).astype(np.float32) for _ in range(2))

CASES: dict[str, Callable[..., Value]] = {
    "elements": lambda x, y: (x + y) * (x - y) * 0.5 + 2.0 / op.exp(x),
    "places": lambda x, y: op.concat((op.transpose(x.reshape(2, -1, 3), (2, 0, 1)), y.reshape(3, 2, 4)), 1),
    "several outputs": lambda x, y: op.split(x, 1, 3)[1] * op.split(y, 1, 3)[2],
    "halves": lambda x, y: x.astype(mstype.float16).astype(mstype.float32) * y,
    "constants": lambda x, y: x * full((4, 6), 3.0) + y.reshape(6, 4).reshape(4, 6),
    "a gradient of its own": lambda x, y: kernels.gated_gelu(x) * op.narrow(y, 1, 0, 3),
}


@pytest.mark.parametrize("name", CASES)
def test_compiled_is_the_same_as_operation_by_operation(name: str) -> None:
    out = value(CASES[name], (X, Y), compiled=False)
    np.testing.assert_allclose(value(CASES[name], (X, Y)), out, rtol=2e-6, atol=2e-6)
    compiled, plain = (gradients(CASES[name], (X, Y), np.cos(out), compiled=way) for way in (True, False))
    for a, b in zip(compiled, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def square_with_a_gradient_of_ten(x: Value) -> Value:
    return with_gradient(lambda x: x * x, lambda d, y: (d * 10.0,), x)


def test_a_gradient_of_its_own_is_used() -> None:
    assert np.array_equal(gradients(square_with_a_gradient_of_ten, (X,), np.ones_like(X))[0], np.full_like(X, 10))


@pytest.mark.parametrize("inside_first", [True, False])
def test_an_operation_inside_such_a_part_and_outside_keeps_both_gradients(inside_first: bool) -> None:
    """Equal operations are recorded once; the one outside must not lose its gradient to the one inside."""

    def function(x: Value) -> Value:
        if inside_first:
            return square_with_a_gradient_of_ten(x) + x * x * 3.0
        return x * x * 3.0 + square_with_a_gradient_of_ten(x)

    found = gradients(function, (X,), np.ones_like(X))[0]
    np.testing.assert_allclose(found, 10 + 6 * X, rtol=1e-6)


def test_such_a_part_used_twice_counts_twice() -> None:
    def function(x: Value) -> Value:
        return square_with_a_gradient_of_ten(x) + square_with_a_gradient_of_ten(x)

    assert np.array_equal(gradients(function, (X,), np.ones_like(X))[0], np.full_like(X, 20))


def test_equal_operations_are_done_once_and_unused_ones_not_at_all() -> None:
    trace = Trace(CPU)
    x = trace.input((4, 6), mstype.float32)
    y = x * 2.0 + x * 2.0
    op.erf(x)
    assert len(trace.nodes) == 3
    assert [node.function.name for node in needed_nodes(trace, (y,))] == ["Mul", "Add"]


def test_numbers_of_another_type_are_other_operations() -> None:
    trace = Trace(CPU)
    x = trace.input((4, 6), mstype.int32)
    assert x * 1 is x * 1
    assert x * 1 is not x * 1.0


def test_outputs_that_are_inputs_or_constants_do_not_pass_through_the_graph() -> None:
    trace = Trace(CPU)
    x, unused = trace.input((2,), mstype.float32), trace.input((2,), mstype.float32)
    function = GraphFunction(trace, (unused, x), (x, full((2,), 3.0), x + 1.0), compiled=True)
    assert function.used == (1,)
    same, constant, more = (t.asnumpy().tolist() for t in function((None, Tensor(np.array([1.0, 2.0], np.float32)))))
    assert (same, constant, more) == ([1.0, 2.0], [3.0, 3.0], [2.0, 3.0])


def test_an_input_that_the_output_does_not_depend_on_gets_zeros() -> None:
    found = gradients(lambda x, y: x * 2.0, (X, Y), np.ones((4, 6), np.float32))
    assert not found[1].any() and (found[0] == 2).all()


def test_an_output_of_several_that_is_not_used_counts_nothing() -> None:
    found = gradients(lambda x: op.split(x, 0, 4)[2] * 3.0, (X,), np.ones((1, 6), np.float32))[0]
    assert np.array_equal(found, np.float32([[0], [0], [3], [0]]).repeat(6, axis=1))


def test_a_gradient_that_is_zero_is_not_added() -> None:
    trace = Trace(CPU)
    x, y, d = (trace.input((4, 6), mstype.float32) for _ in range(3))
    d_x, d_y = trace.gradients(op.after(x, y) * 2.0 + y, d, (x, y))
    assert [node.function.name for node in needed_nodes(trace, (d_x, d_y))] == ["Mul"]
    assert d_y is d


def test_of_a_gradient_there_is_no_gradient() -> None:
    """Nor of what is inside ``with_gradient``: an error, where it would be left out without a word."""
    trace = Trace(CPU)
    x, d = (trace.input((4, 6), mstype.float32) for _ in range(2))
    slope = trace.gradients(x * x * x, d, (x,))[0]
    for out in (slope, op.exp(slope), x * slope):
        with pytest.raises(AssertionError, match="gradient of a gradient"):
            trace.gradients(out, d, (x,))


def test_a_gradient_of_another_shape_is_refused() -> None:
    def summed(x: Value) -> Value:
        return with_gradient(lambda x: x * x, lambda d, y: (op.sum(d),), x)

    with pytest.raises(AssertionError, match="has none"):
        gradients(summed, (X,), np.ones_like(X))


def test_stacks_are_split_and_joined() -> None:
    stacks = (Stack(2, (2, 3), 1.0), Stack(1, (4,), 0.5), Stack(1, (2, 1), 1.0))
    assert [stack.whole_shape for stack in stacks] == [(4, 3), (4,), (2, 1)]
    flat = np.arange(18, dtype=np.float32)
    arrays = (flat[:12].reshape(4, 3), flat[12:16], flat[16:].reshape(2, 1))
    trace = Trace(CPU)
    inputs = [trace.input(array.shape, mstype.float32) for array in arrays]
    tensors = split_stacks(inputs, stacks)
    outputs = (*tensors, *join_stacks(tensors, stacks))
    found = [t.asnumpy() for t in GraphFunction(trace, inputs, outputs, True)([Tensor(a) for a in arrays])]
    first, second, third = arrays
    # The gradient of a scaled tensor is scaled once more.
    expected = [first[:2], first[2:], second * 0.5, third, first, second * 0.25, third]
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
