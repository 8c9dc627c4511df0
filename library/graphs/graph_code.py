"""From a trace to a function that MindSpore compiles, or runs operation by operation.

The function is source text of one call a line, without a branch, a loop or a lookup. MindSpore's graph compiler takes
0.3 ms for such a line, and 2 to 6 ms for an ``if`` that it could decide itself.
"""

import itertools
import os
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import mindspore as ms
from mindspore import JitConfig, Tensor
from mindspore.common.api import _JitExecutor, _pynative_executor

from library.device.profile import DeviceProfile
from library.graphs.values import HALVES, Constant, Node, Trace, Value

_NUMBERS = itertools.count()


class GraphFunction:
    """Computes some values of a trace from the tensors of its inputs.

    Args:
        trace: the operations.
        inputs: the values for which tensors will be given, in their order.
        outputs: the values that are wanted; nothing else is computed.
        compiled: compile to a graph at the first call; False runs operation by operation.
    """

    def __init__(self, trace: Trace, inputs: Sequence[Value], outputs: Sequence[Value], compiled: bool) -> None:
        nodes = needed_nodes(trace, outputs)
        used = {id(x) for node in nodes for x in node.inputs}
        place = {id(x): i for i, x in enumerate(inputs)}
        self.used = tuple(i for i, x in enumerate(inputs) if id(x) in used)
        """Which inputs are needed at all."""
        made = {id(y) for node in nodes for y in node.outputs}
        results = list(dict.fromkeys(y for y in outputs if id(y) in made))
        relabels = compiled and trace.profile.relabel_halves
        self._relabelled = tuple(i for i, y in enumerate(results) if relabels and str(y.dtype) in HALVES)
        # An output that is an input, or a constant, does not pass through the graph.
        self._sources = [_Source(place, results, y) for y in outputs]
        self.source = ""
        """The text that is compiled, empty where no operation is needed (docs/compiler.md reads one)."""
        self._function: Callable[..., Any] | None = None
        if results:
            title = f"graph_{next(_NUMBERS)}"  # MindSpore warns where functions of one name are compiled
            lines, bound = _write(title, nodes, [inputs[i] for i in self.used], results)
            self.source = "".join(line + "\n" for line in lines)
            function = _define(title, self.source, bound)
            self._function = _Graph(function) if compiled else function

    def __call__(self, arguments: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """The outputs, given a tensor for each input; for one that is not used, None will do."""
        results = () if self._function is None else self._function(*[arguments[i] for i in self.used])
        if self._relabelled:
            results = tuple(_relabelled(x) if i in self._relabelled else x for i, x in enumerate(results))
        return tuple(source.pick(arguments, results) for source in self._sources)


class _Graph:
    """A compiled function that always gets tensors of the same shapes and types.

    ``ms.jit`` would look the graph up in every call, by the shapes and types of all arguments. That takes 0.5 ms with
    twenty of them, while MindSpore's other threads fall asleep: a fifth of a tiny model's step. So the executor behind
    ``ms.jit`` is asked for the graph's name once, and the graph is then run by that name.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        # 0 for the time of creation: functions differ by their names.
        self._executor = _JitExecutor(function, 0, jit_config=JitConfig(jit_level="O0"))
        self._name: str | None = None

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        if self._name is None:
            results = self._executor(*tensors)
            self._name = self._executor.compile(self._function.__name__, *tensors)
            return results
        _pynative_executor.set_jit_compile_phase(self._name)
        return _pynative_executor.grad_jit(*tensors)


def _relabelled(half: Tensor) -> Tensor:
    """What is a half by name only as one (``DeviceProfile.relabel_halves``)."""
    return half.astype(ms.float32).astype(half.dtype)


class _Source:
    """Where an output comes from: the graph's results, the arguments, or a constant."""

    def __init__(self, place: dict[int, int], results: list[Value], y: Value) -> None:
        self._constant = y.tensor if isinstance(y, Constant) else None
        self._is_argument = id(y) in place
        self._index = -1
        if self._constant is None:
            self._index = place[id(y)] if self._is_argument else results.index(y)

    def pick(self, arguments: Sequence[Tensor], results: Sequence[Tensor]) -> Tensor:
        if self._constant is not None:
            return self._constant
        return arguments[self._index] if self._is_argument else results[self._index]


def release(tensors: Iterable[Tensor], profile: DeviceProfile) -> None:
    """Give back the memory of tensors that nobody will read again.

    A compiled graph holds on to the inputs of its last call. On a CPU, where calls are over when they return, their
    memory can be taken from it.
    """
    if profile.is_host:
        for tensor in tensors:
            tensor.untyped_storage().resize_(0)


def needed_nodes(trace: Trace, outputs: Sequence[Value]) -> list[Node]:
    """The operations that the outputs come from, in order."""
    needed, nodes = set(map(id, outputs)), []
    for node in reversed(trace.nodes):
        if any(id(y) in needed for y in node.outputs):
            nodes.append(node)
            needed.update(map(id, node.inputs))
    return nodes[::-1]


def _write(
    title: str, nodes: Sequence[Node], inputs: Sequence[Value], outputs: Sequence[Value]
) -> tuple[list[str], dict[str, Any]]:
    """The lines of a Python function (*inputs) -> tuple of outputs, and what the names in it stand for."""
    names = {id(x): f"x{i}" for i, x in enumerate(inputs)}
    bound: dict[int, tuple[str, Any]] = {}

    def bind(prefix: str, thing: Any) -> str:
        return bound.setdefault(id(thing), (f"{prefix}{len(bound)}", thing))[0]

    def name(x: Value) -> str:
        return bind("constant_", x.tensor) if isinstance(x, Constant) else names[id(x)]

    lines = [f"def {title}({', '.join(names.values())}):"]
    for node in nodes:
        for y in node.outputs:
            names[id(y)] = f"v{len(names)}"
        arguments = [name(x) for x in node.inputs]
        if node.packed_from is not None:
            packed = ", ".join(arguments[node.packed_from :])
            arguments[node.packed_from :] = [f"({packed},)"]
        arguments += [bind("type_", a) if isinstance(a, ms.Type) else repr(a) for a in node.attributes]
        targets = ", ".join(names[id(y)] for y in node.outputs) + ("," if node.is_many else "")
        function = bind(getattr(node.function, "name", "function") + "_", node.function)
        lines.append(f"    {targets} = {function}({', '.join(arguments)})")
    lines.append(f"    return ({', '.join(names[id(y)] for y in outputs)},)")
    return lines, dict(bound.values())


def _define(title: str, source: str, bound: dict[str, Any]) -> Callable[..., Any]:
    """Run the text of a function that uses some names of ours."""
    maker = f"def make({', '.join(bound)}):\n{textwrap.indent(source, '    ')}    return {title}\n"
    scope: dict[str, Any] = {"__name__": __name__}
    exec(compile(maker, os.devnull, "exec"), scope)  # our own text; a file that exists, or MindSpore complains
    graph = scope["make"](**bound)
    # Where MindSpore looks for the text of a function that is in no file.
    graph.source = (source.splitlines(keepends=True), 0)
    return graph
