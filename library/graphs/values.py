"""Values: tensors that are still to be computed, and the trace of operations on them.

A block function runs once, in plain Python, on values. What it does to them is recorded as a straight list of
operations, out of which ``graph_code`` makes the function that MindSpore compiles. So whatever Python decides on the
way (which layers have a bias, which have adapters, how many chunks) costs the graph compiler nothing
(docs/decisions/0006).

Given plain tensors, every operation here is carried out at once.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Union

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from library.device.profile import DeviceProfile

Shape = tuple[int, ...]
Gradient = Callable[..., tuple[Union["Value", None], ...]]
"""(gradient of the output, the output) -> gradient of each input; None where there is none."""


class Value:
    """A tensor in a trace: a shape, a type, and the trace that it belongs to."""

    __slots__ = ("dtype", "shape", "trace")

    def __init__(self, trace: "Trace | None", shape: Shape, dtype: ms.Type) -> None:
        self.trace, self.shape, self.dtype = trace, shape, dtype

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def profile(self) -> DeviceProfile:
        """The device that the trace is made for."""
        assert self.trace is not None, "a constant belongs to no trace"
        return self.trace.profile

    def __add__(self, other: Any) -> Any:
        return _binary(_ADD, self, other, lambda d, y: (d, d))

    def __sub__(self, other: Any) -> Any:
        return _binary(_SUB, self, other, lambda d, y: (d, d * -1.0))

    def __mul__(self, other: Any) -> Any:
        return _binary(_MUL, self, other, lambda d, y: (d * other, d * self if isinstance(other, Value) else None))

    def reshape(self, *shape: Any) -> "Value":
        """The same elements in another shape; one size may be -1."""
        sizes = shape[0] if isinstance(shape[0], tuple) else shape
        known = -math.prod(sizes) if -1 in sizes else 1
        sizes = tuple(self.size // known if size == -1 else size for size in sizes)
        assert math.prod(sizes) == self.size, f"{self.shape} has not the elements of {sizes}"
        if sizes == self.shape:
            return self
        return apply(_RESHAPE, (self,), (sizes,), shape=sizes, gradient=lambda d, y: (d.reshape(self.shape),))

    def astype(self, dtype: ms.Type) -> "Value":
        """The same elements in another type."""
        if dtype == self.dtype:
            return self
        return apply(
            _CAST, (self,), (dtype,), shape=self.shape, dtype=dtype, gradient=lambda d, y: (d.astype(self.dtype),)
        )


class Constant(Value):
    """A value that is known when a trace is made."""

    __slots__ = ("tensor",)

    def __init__(self, array: np.ndarray, dtype: ms.Type | None = None) -> None:
        self.tensor = Tensor(array, dtype)
        super().__init__(None, array.shape, self.tensor.dtype)


_full: dict[tuple[Shape, float, str], Constant] = {}


def full(shape: Shape, number: float, dtype: ms.Type = ms.float32) -> Constant:
    """A constant whose elements are all equal."""
    key = (shape, number, str(dtype))  # equal types do not always have equal hashes
    if key not in _full:
        _full[key] = Constant(np.full(shape, number, np.float32), dtype)
    return _full[key]


@dataclass(frozen=True, eq=False)
class Node:
    """One operation of a trace: ``outputs = function(*inputs, *attributes)``."""

    function: Callable[..., Any]
    """A MindSpore primitive, or a function that the graph compiler can read."""
    inputs: tuple[Value, ...]
    attributes: tuple[Any, ...]
    outputs: tuple[Value, ...]
    packed_from: int | None
    """Inputs from this one on are passed together, as a tuple."""
    is_many: bool
    """Whether the function returns a tuple."""


@dataclass(frozen=True, eq=False)
class _Step:
    """A part of a trace as the gradient sees it."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    gradient: Gradient | None


class Trace:
    """The operations on a set of inputs, and how their gradients are formed, on one device."""

    def __init__(self, profile: DeviceProfile) -> None:
        self.profile = profile
        self.nodes: list[Node] = []
        self._steps: list[_Step] = []
        self._made: dict[Any, tuple[Value, ...]] = {}
        """Equal operations on the same values are recorded once."""
        self._made_inside: dict[Any, tuple[Value, ...]] = {}
        """The same for those inside ``with_gradient``; they have no gradient, so only gradients use them again."""
        self._differentiating = False

    def input(self, shape: Shape, dtype: ms.Type) -> Value:
        """A new input."""
        return Value(self, tuple(shape), dtype)

    def record(
        self,
        function: Callable[..., Any],
        inputs: tuple[Value, ...],
        attributes: tuple[Any, ...],
        outputs: Sequence[tuple[Shape, ms.Type]],
        gradient: Gradient | None,
        packed_from: int | None,
        is_many: bool,
    ) -> tuple[Value, ...]:
        """Add an operation, or find the equal one that was added before; its outputs."""
        key = (id(function), tuple(map(id, inputs)), tuple(map(_hashable, attributes)))
        made = self._made.get(key)
        if made is None and self._differentiating:
            made = self._made_inside.get(key)
        if made is not None:
            return made
        made = tuple(Value(self, shape, dtype) for shape, dtype in outputs)
        self.nodes.append(Node(function, inputs, attributes, made, packed_from, is_many))
        self._made[key] = made
        self.add_step(inputs, made, gradient)
        return made

    def add_step(self, inputs: tuple[Value, ...], outputs: tuple[Value, ...], gradient: Gradient | None) -> None:
        """Say how the gradient of an output becomes those of the inputs."""
        if not self._differentiating:
            self._steps.append(_Step(inputs, outputs, gradient))

    def close_over(self, function: Callable[..., Value], inputs: tuple[Value, ...], gradient: Gradient) -> Value:
        """See ``with_gradient``."""
        # Nothing is shared with the outside, where the same operation has another gradient.
        outside, steps = self._made, len(self._steps)
        self._made = {}
        output = function(*inputs)
        self._made_inside |= self._made
        self._made = outside
        del self._steps[steps:]
        self.add_step(inputs, (output,), gradient)
        return output

    def gradients(self, output: Value, d_output: Value, wanted: Iterable[Value]) -> tuple[Value, ...]:
        """Gradients of the wanted values from that of an output; zero for those that it does not depend on."""
        wanted = tuple(wanted)
        depend = set(map(id, wanted))
        for step in self._steps:
            if any(id(x) in depend for x in step.inputs):
                depend.update(map(id, step.outputs))
        flowing = {id(output): d_output}
        self._differentiating = True
        for step in reversed(self._steps):
            d_outputs = [flowing.get(id(y)) for y in step.outputs]
            if all(d is None for d in d_outputs) or not any(id(x) in depend for x in step.inputs):
                continue
            assert step.gradient is not None, "an operation without a gradient needs with_gradient around it"
            for x, d_x in zip(step.inputs, step.gradient(d_outputs[0], step.outputs[0]), strict=True):
                if id(x) in depend:
                    assert d_x is not None and d_x.shape == x.shape, "no gradient for an input that is broadcast"
                    flowing[id(x)] = flowing[id(x)] + d_x if id(x) in flowing else d_x
        self._differentiating = False
        return tuple(flowing[id(x)] if id(x) in flowing else full(x.shape, 0.0, x.dtype) for x in wanted)


def apply(
    function: Callable[..., Any],
    inputs: tuple[Any, ...],
    attributes: tuple[Any, ...] = (),
    *,
    shape: Shape,
    dtype: ms.Type | None = None,
    gradient: Gradient | None = None,
    packed_from: int | None = None,
) -> Any:
    """One operation with one output: recorded for values, carried out at once for tensors.

    Args:
        function: called as function(*inputs, *attributes).
        inputs: values, or tensors.
        attributes: constants: numbers, tuples of numbers, types.
        shape: of the output.
        dtype: of the output; None for that of the first input.
        gradient: how gradients flow back; None if none do.
        packed_from: the inputs from this one on are passed together, as a tuple.
    """
    trace = _trace_of(inputs)
    if trace is None:
        return function(*_packed(inputs, packed_from), *attributes)
    outputs = ((shape, dtype or inputs[0].dtype),)
    return trace.record(function, inputs, attributes, outputs, gradient, packed_from, False)[0]


def apply_many(function: Callable[..., Any], inputs: tuple[Any, ...], shapes: Sequence[Shape]) -> tuple[Any, ...]:
    """One operation with several outputs of one type, to be used in gradients and inside ``with_gradient``."""
    trace = _trace_of(inputs)
    if trace is None:
        return tuple(function(*inputs))
    return trace.record(function, inputs, (), tuple((shape, inputs[0].dtype) for shape in shapes), None, None, True)


def with_gradient(function: Callable[..., Any], gradient: Gradient, *inputs: Any) -> Any:
    """function(*inputs) whose gradient is formed by ``gradient(d_output, output)``, not operation by operation."""
    trace = _trace_of(inputs)
    return function(*inputs) if trace is None else trace.close_over(function, inputs, gradient)


def _trace_of(inputs: Iterable[Any]) -> Trace | None:
    return next((x.trace for x in inputs if isinstance(x, Value) and x.trace is not None), None)


def _packed(inputs: tuple[Any, ...], packed_from: int | None) -> tuple[Any, ...]:
    return inputs if packed_from is None else (*inputs[:packed_from], inputs[packed_from:])


def _hashable(attribute: Any) -> Any:
    return str(attribute) if isinstance(attribute, ms.Type) else (type(attribute), attribute)


def _binary(function: Callable[..., Any], x: Value, other: Any, gradient: Gradient) -> Any:
    """x with a value, or with a number. The gradient of a value that is broadcast is not known."""
    if not isinstance(other, Value):
        return apply(function, (x,), (other,), shape=x.shape, gradient=lambda d, y: gradient(d, y)[:1])
    shape = np.broadcast_shapes(x.shape, other.shape)
    shapes = (x.shape, other.shape)

    def unless_broadcast(d: Value, y: Value) -> tuple[Value | None, ...]:
        return tuple(g if s == shape else None for g, s in zip(gradient(d, y), shapes, strict=True))

    return apply(function, (x, other), shape=shape, gradient=unless_broadcast)


_ADD, _SUB, _MUL, _RESHAPE, _CAST = ops.Add(), ops.Sub(), ops.Mul(), ops.Reshape(), ops.Cast()
