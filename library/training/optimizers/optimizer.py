"""An optimizer at work: a rule with the state of everything that is trained."""

from collections.abc import Mapping, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from library.device.profile import Device
from library.graphs import operations as op
from library.graphs.graph_code import GraphFunction
from library.graphs.values import Trace, Value
from library.training.optimizers.rule import Moment, Rule
from library.training.trained import TrainedTensor

_CHUNK = 1 << 14
"""Values that NumPy updates at once: they and what is made of them on the way stay in a core's cache."""


class Optimizer:
    """Updates trained tensors one by one, in place.

    Args:
        rule: the update rule.
        tensors: everything that is trained.
        device: where it is.
    """

    def __init__(self, rule: Rule, tensors: Sequence[TrainedTensor], device: Device) -> None:
        self.rule = rule
        self.steps = 0
        """Updates so far, the one under way included."""
        self._device = device
        self._state = {tensor: self._first_state(tensor) for tensor in tensors}
        self._graphs: dict[Any, GraphFunction] = {}

    def _first_state(self, tensor: TrainedTensor) -> dict[str, Any]:
        shapes = self.rule.state_shapes(tensor.shape)
        zeros = {name: np.zeros(tensor.stacked_shape(shape), np.float32) for name, shape in shapes.items()}
        return zeros if self._device.profile.is_host else {name: Tensor(array) for name, array in zeros.items()}

    def begin_step(self) -> None:
        """Count a step: the updates that follow belong to it."""
        self.steps += 1

    def update(self, tensor: TrainedTensor, gradient: Tensor, lr_factor: float, grad_scale: float = 1.0) -> None:
        """Change a tensor and its state; one of a group whose learning rate is 0 is not trained.

        Args:
            tensor: which.
            gradient: in the shape of its value.
            lr_factor: the schedule's factor on the learning rate.
            grad_scale: multiplies the gradient.
        """
        if tensor.group.lr == 0.0:
            return
        now = Moment(self.steps, tensor.group.lr * lr_factor, tensor.group.weight_decay)
        numbers = self.rule.numbers(now)
        if self._device.profile.is_host:
            self._update_on_host(tensor, gradient.asnumpy(), grad_scale, numbers)
        else:
            self._update_on_device(tensor, gradient, grad_scale, numbers)

    def _update_on_host(
        self, tensor: TrainedTensor, gradient: np.ndarray, grad_scale: float, numbers: Mapping[str, float]
    ) -> None:
        shape = tensor.stacked_shape(tensor.shape)
        value, gradient, state = tensor.array.reshape(shape), gradient.reshape(shape), self._state[tensor]
        parts = [(value, gradient, state)]
        if self.rule.elementwise and value.size > _CHUNK:
            flat = [array.reshape(-1) for array in (value, gradient, *state.values())]
            starts = range(0, value.size, _CHUNK)
            cut = ([array[start : start + _CHUNK] for array in flat] for start in starts)
            parts = [(some[0], some[1], dict(zip(state, some[2:], strict=True))) for some in cut]
        for old, grad, remembered in parts:
            grad = grad if grad_scale == 1.0 else grad * np.float32(grad_scale)
            new, changed = self.rule.update(HOST, old, grad, remembered, numbers)
            np.copyto(old, new)
            for name, array in changed.items():
                np.copyto(remembered[name], array)

    def _update_on_device(
        self, tensor: TrainedTensor, gradient: Tensor, grad_scale: float, numbers: Mapping[str, float]
    ) -> None:
        state = self._state[tensor]
        scalars = [Tensor(np.float32(number)) for number in (grad_scale, *numbers.values())]
        graph = self._graph(tensor, numbers)
        value, *changed = graph([tensor.value, gradient, *state.values(), *scalars])
        tensor.replace(value)
        state.update(zip(state, changed, strict=True))

    def _graph(self, tensor: TrainedTensor, numbers: Mapping[str, float]) -> GraphFunction:
        """The rule, compiled for tensors of a shape."""
        key = len(tensor.names), tensor.shape
        if key not in self._graphs:
            trace = Trace(self._device.profile)
            held, whole = tensor.array.shape, tensor.stacked_shape(tensor.shape)
            value, gradient = (trace.input(held, ms.float32) for _ in range(2))
            shapes = self.rule.state_shapes(tensor.shape)
            state = {name: trace.input(tensor.stacked_shape(shape), ms.float32) for name, shape in shapes.items()}
            scale, *scalars = (trace.input((), ms.float32) for _ in range(1 + len(numbers)))
            named = dict(zip(numbers, scalars, strict=True))
            grad = gradient.reshape(whole) * scale
            new, changed = self.rule.update(TRACED, value.reshape(whole), grad, state, named)
            outputs = (new.reshape(held), *(changed[name] for name in state))
            inputs = (value, gradient, *state.values(), scale, *scalars)
            self._graphs[key] = GraphFunction(trace, inputs, outputs, self._device.compiled)
        return self._graphs[key]


class _Host:
    """``rule.Maths`` for NumPy."""

    def sqrt(self, x: Any) -> Any:
        return np.sqrt(x)

    def sign(self, x: Any) -> Any:
        return np.sign(x)

    def maximum(self, x: Any, least: Any) -> Any:
        return np.maximum(x, least)

    def mean(self, x: Any, axes: tuple[int, ...]) -> Any:
        return x.mean(axes, keepdims=True)


class _Traced:
    """``rule.Maths`` for values of a trace."""

    def sqrt(self, x: Value) -> Value:
        return op.sqrt(x)

    def sign(self, x: Value) -> Value:
        return op.sign(x)

    def maximum(self, x: Value, least: Any) -> Value:
        return op.maximum(x, least)

    def mean(self, x: Value, axes: tuple[int, ...]) -> Value:
        return op.mean(x, axes, keepdims=True)


HOST, TRACED = _Host(), _Traced()
