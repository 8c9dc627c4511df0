"""Values: tensors that are still to be computed, and the trace of operations on them.

A block function runs once, in plain Python, on values. What it does to them is recorded as a straight list of
operations, out of which ``graph_code`` makes the function that MindSpore compiles. So whatever Python decides on the
way (which layers have a bias, which have adapters, how many chunks) costs the graph compiler nothing
(docs/decisions/0006).

Given plain tensors, every operation here is carried out at once. Operations on constants alone give a constant.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from library.device.profile import DeviceProfile

Shape = tuple[int, ...]
Gradient = Callable[..., tuple[Union["Value", None], ...]]
"""(gradient of the output, the output) -> gradient of each input; None for an input that cannot have one, which is an
error where that input's gradient is needed. A gradient that is zero everywhere is ``zeros_like(input)``."""
Slope = Callable[["Value", "Value"], "Value"]
HALVES = tuple(map(str, (ms.float16, ms.bfloat16)))
FLOATS = (str(ms.float32), *HALVES)
"""Types of what has a gradient."""


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
        return elementwise(_ADD, self, other, lambda d, out: d, lambda d, out: d)

    def __radd__(self, other: Any) -> Any:
        return self + other

    def __sub__(self, other: Any) -> Any:
        return elementwise(_SUB, self, other, lambda d, out: d, lambda d, out: -d)

    def __rsub__(self, other: Any) -> Any:
        return full((), other, self.dtype) - self

    def __mul__(self, other: Any) -> Any:
        return elementwise(_MUL, self, other, lambda d, out: d * other, lambda d, out: d * self)

    def __rmul__(self, other: Any) -> Any:
        return self * other

    def __truediv__(self, other: Any) -> Any:
        return elementwise(_DIV, self, other, lambda d, out: d / other, lambda d, out: -(d * out / other))

    def __rtruediv__(self, other: Any) -> Any:
        return full((), other, self.dtype) / self

    def __neg__(self) -> Any:
        return apply(_NEG, (self,), shape=self.shape, gradient=lambda d, y: (-d,))

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
        """The same elements in another type. What went through whole numbers has no gradient."""
        if dtype == self.dtype:
            return self

        def gradient(d: Value, y: Value) -> tuple[Value | None]:
            return (d.astype(self.dtype) if str(self.dtype) in FLOATS and str(dtype) in FLOATS else None,)

        return apply(_CAST, (self,), (dtype,), shape=self.shape, dtype=dtype, gradient=gradient)


class Constant(Value):
    """A value that is known when a trace is made."""

    __slots__ = ("tensor",)

    def __init__(self, content: np.ndarray | Tensor, dtype: ms.Type | None = None) -> None:
        self.tensor = content if isinstance(content, Tensor) else Tensor(content, dtype)
        super().__init__(None, tuple(self.tensor.shape), self.tensor.dtype)


_full: dict[tuple[Shape, float, str], Constant] = {}


def full(shape: Shape, number: float, dtype: ms.Type = ms.float32) -> Constant:
    """A constant whose elements are all equal."""
    key = (shape, number, str(dtype))  # equal types do not always have equal hashes
    if key not in _full:
        _full[key] = Constant(np.full(shape, number, np.float32), dtype)
    return _full[key]


def zeros_like(x: Any) -> Constant:
    """Zeros in the shape and type of a value or tensor."""
    return full(tuple(x.shape), 0.0, x.dtype)


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
    is_many: bool
    """Whether the gradient is given tuples: of the outputs' gradients, and of the outputs."""

    def gradients_of_inputs(self, flowing: Mapping[int, Value]) -> tuple[Value | None, ...]:
        """From the gradients that have come to the outputs, by identity; an output without one counts nothing."""
        assert self.gradient is not None, "an operation that has no gradient is on the way of one"
        d_outputs = tuple(flowing[id(y)] if id(y) in flowing else zeros_like(y) for y in self.outputs)
        return self.gradient(d_outputs, self.outputs) if self.is_many else self.gradient(d_outputs[0], self.outputs[0])


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
        self.add_step(inputs, made, gradient, is_many)
        return made

    def add_step(
        self, inputs: tuple[Value, ...], outputs: tuple[Value, ...], gradient: Gradient | None, is_many: bool = False
    ) -> None:
        """Say how the gradients of the outputs become those of the inputs; with ``is_many`` it is given tuples."""
        if not self._differentiating:
            self._steps.append(_Step(inputs, outputs, gradient, is_many))

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
        computed_from = self._computed_from(wanted)
        flowing = {id(output): d_output}
        self._differentiating = True
        for step in reversed(self._steps):
            if not any(id(y) in flowing for y in step.outputs) or not any(id(x) in depend for x in step.inputs):
                continue
            for x, d_x in zip(step.inputs, step.gradients_of_inputs(flowing), strict=True):
                if id(x) in depend:
                    assert d_x is not None and d_x.shape == x.shape, "an input whose gradient is needed has none"
                    if d_x is not zeros_like(x):
                        flowing[id(x)] = flowing[id(x)] + d_x if id(x) in flowing else d_x
                else:
                    assert id(x) not in computed_from, "the gradient of a gradient is not known"
        self._differentiating = False
        assert id(output) in depend or id(output) not in computed_from, "the gradient of a gradient is not known"
        return tuple(flowing[id(x)] if id(x) in flowing else zeros_like(x) for x in wanted)

    def _computed_from(self, values: Iterable[Value]) -> set[int]:
        """The identities of all values that some are used for, whether their gradients are known or not."""
        computed = set(map(id, values))
        for node in self.nodes:
            if any(id(x) in computed for x in node.inputs):
                computed.update(map(id, node.outputs))
        return computed


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
        result = function(*_packed(_tensors(inputs), packed_from), *attributes)
        return Constant(result) if all(isinstance(x, Constant) for x in inputs) else result
    outputs = ((shape, dtype or inputs[0].dtype),)
    return trace.record(function, inputs, attributes, outputs, gradient, packed_from, False)[0]


def apply_many(
    function: Callable[..., Any],
    inputs: tuple[Any, ...],
    shapes: Sequence[Shape],
    gradient: Callable[..., tuple[Value | None, ...]] | None = None,
) -> tuple[Any, ...]:
    """One operation with several outputs of one type.

    Args:
        function: called as function(*inputs); returns a tuple.
        inputs: values, or tensors.
        shapes: of the outputs.
        gradient: (tuple of the outputs' gradients, tuple of the outputs) -> gradient of each input.
    """
    trace = _trace_of(inputs)
    if trace is None:
        results = function(*_tensors(inputs))
        return tuple(map(Constant, results) if all(isinstance(x, Constant) for x in inputs) else results)
    outputs = tuple((shape, inputs[0].dtype) for shape in shapes)
    return trace.record(function, inputs, (), outputs, gradient, None, True)


def with_gradient(function: Callable[..., Any], gradient: Gradient, *inputs: Any) -> Any:
    """function(*inputs) whose gradient is formed by ``gradient(d_output, output)``, not operation by operation."""
    trace = _trace_of(inputs)
    return function(*inputs) if trace is None else trace.close_over(function, inputs, gradient)


def _trace_of(inputs: Iterable[Any]) -> Trace | None:
    return next((x.trace for x in inputs if isinstance(x, Value) and x.trace is not None), None)


def _tensors(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Constants as the tensors that they are."""
    return tuple(x.tensor if isinstance(x, Constant) else x for x in inputs)


def _packed(inputs: tuple[Any, ...], packed_from: int | None) -> tuple[Any, ...]:
    return inputs if packed_from is None else (*inputs[:packed_from], inputs[packed_from:])


def _hashable(attribute: Any) -> Any:
    return str(attribute) if isinstance(attribute, ms.Type) else (type(attribute), attribute)


def elementwise(function: Callable[..., Any], x: Value, y: Any, d_x: Slope, d_y: Slope) -> Any:
    """x with y, which is a value or a number.

    ``d_x`` and ``d_y`` make their gradients of (gradient of the output, the output), in the output's shape; an operand
    that was repeated along some axes gets the sum over them.
    """
    if not isinstance(y, Value | Tensor):
        return apply(function, (x,), (y,), shape=x.shape, gradient=lambda d, out: (d_x(d, out),))

    def gradient(d: Value, out: Value) -> tuple[Value, Value]:
        return sum_to(d_x(d, out), x.shape), sum_to(d_y(d, out), y.shape)

    return apply(function, (x, y), shape=np.broadcast_shapes(x.shape, y.shape), gradient=gradient)


def sum_to(d: Value, shape: Shape) -> Value:
    """The gradient of an operand of this shape, from one in the shape that the operand was broadcast to."""
    if d.shape == shape:
        return d
    lengthened = (1,) * (len(d.shape) - len(shape)) + shape
    axes = tuple(i for i, (size, summed) in enumerate(zip(lengthened, d.shape, strict=True)) if size != summed)
    if axes:
        d = apply(_SUM, (d,), (axes,), shape=tuple(1 if i in axes else size for i, size in enumerate(d.shape)))
    return d.reshape(shape)


_ADD, _SUB, _MUL, _DIV, _NEG = ops.Add(), ops.Sub(), ops.Mul(), ops.Div(), ops.Neg()
_RESHAPE, _CAST, _SUM = ops.Reshape(), ops.Cast(), ops.ReduceSum(keep_dims=True)
