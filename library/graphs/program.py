"""Compiling blocks: one program per kind of block, shared by every block of that kind.

A program takes the block's inputs, its adapters' tensors (those alike as one), a random key, and its frozen weights;
all of them are inputs of the compiled graph, so equal blocks never compile twice (docs/decisions/0002, 0006).
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import mindspore as ms
from mindspore import Tensor

from library.device.profile import Device
from library.graphs.block import Block, LayerOptions, Layers
from library.graphs.graph_code import GraphFunction, needed_nodes
from library.graphs.random import key_tensor
from library.graphs.stacks import Stack, join_stacks, split_stacks
from library.graphs.values import Shape, Trace, Value


class AdapterEntry(NamedTuple):
    """An adapter in a block."""

    layer: str
    """Local name of the layer that it adapts."""
    adapter: Any
    """See ``shapes``, ``factors``, ``apply`` in networks.network_base."""
    groups: tuple[int, ...] = ()
    """Number, within the block, of each tensor's parameter group; empty where there is one only."""


class Slot(NamedTuple):
    """One of a block's adapter tensors."""

    adapter: int
    """Which of the block's adapters."""
    suffix: str
    shape: Shape
    factor: float
    """What the tensor is multiplied by before it is used."""
    group: int

    @property
    def likeness(self) -> tuple[Shape, float, int]:
        """What tensors have in common that are stacked."""
        return self.shape, self.factor, self.group


def slots_of(adapters: tuple[AdapterEntry, ...]) -> tuple[Slot, ...]:
    """A block's adapter tensors in the order in which they are trained: those alike are neighbours."""
    slots = [
        Slot(i, suffix, shape, entry.adapter.factors().get(suffix, 1.0), entry.groups[j] if entry.groups else 0)
        for i, entry in enumerate(adapters)
        for j, (suffix, shape) in enumerate(entry.adapter.shapes().items())
    ]
    kinds = list(dict.fromkeys(slot.likeness for slot in slots))
    return tuple(sorted(slots, key=lambda slot: kinds.index(slot.likeness)))


def stacks_of(slots: Sequence[Slot]) -> tuple[Stack, ...]:
    """The stacks that a block's adapter tensors form."""
    alike = itertools.groupby(slot.likeness for slot in slots)
    return tuple(Stack(len(list(equal)), shape, factor) for (shape, factor, _), equal in alike)


class Outline(NamedTuple):
    """Shape and type of a tensor."""

    shape: Shape
    dtype: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @staticmethod
    def of(tensor: Tensor) -> "Outline":
        """The outline of a tensor."""
        return Outline(tensor.shape, str(tensor.dtype))

    def value_in(self, trace: Trace) -> Value:
        """A value of this outline, as an input of a trace."""
        return trace.input(self.shape, _DTYPES[self.dtype])


_INT32 = str(ms.int32)
"""The type of token ids, which have no gradient."""
_DTYPES = {str(dtype): dtype for dtype in (ms.float32, ms.float16, ms.bfloat16, ms.int32)}


@dataclass(frozen=True, eq=False)
class _Traced:
    """A block function, traced for inputs of one shape."""

    trace: Trace
    inputs: tuple[Value, ...]
    others: tuple[Value, ...]
    """Stacks of adapter tensors, random key, weights."""
    pieces: tuple[Value, ...]
    """The adapter tensors that the stacks were cut into."""
    trained_weights: tuple[Value, ...]
    output: Value
    products: tuple[Value, ...]
    """Results that a gradient can be given, in the order of their computation."""
    known: tuple[Value, ...]
    """Inputs that stand in their place; empty where they are computed again."""


@dataclass(frozen=True)
class _Gradient:
    function: GraphFunction
    kept: tuple[int, ...]
    """Which products it needs to be given."""


@dataclass(frozen=True, eq=False)
class Saved:
    """What a forward pass leaves behind for its gradient."""

    gradient: GraphFunction
    inputs: tuple[Tensor | None, ...]
    """Those that the gradient reads; None in the place of the others."""
    products: tuple[Tensor, ...]
    own: tuple[Tensor, ...]
    """The products that nobody else will read: not the output."""


class CallValues(NamedTuple):
    """What a call leaves behind for its gradient, from shapes alone."""

    output: Outline
    kept: int
    """Values of the products that are kept."""
    read: tuple[int, ...]
    """Which inputs the gradient reads beside them."""


@dataclass(frozen=True)
class Kind:
    """What blocks have in common that share a program."""

    function: Callable[..., Any]
    options: LayerOptions
    weights: tuple[tuple[str, Outline], ...]
    """Local name and outline of each weight."""
    transposed: tuple[str, ...] = ()
    adapters: tuple[AdapterEntry, ...] = ()
    trained: tuple[str, ...] = ()
    """Local names of the weights that are trained."""


class Program:
    """The forward pass of a kind of block, and its vector-Jacobian products. Made once for each shape of inputs."""

    def __init__(self, kind: Kind, device: Device) -> None:
        self._kind, self._device = kind, device
        self.profile = device.profile
        self._slots = slots_of(kind.adapters)
        self._stacks = stacks_of(self._slots)
        self._forwards: dict[Any, GraphFunction] = {}
        self._gradients: dict[Any, _Gradient] = {}
        self._footprints: dict[tuple[Outline, ...], CallValues] = {}

    def forward(self, inputs: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
        """The block's output.

        Args:
            inputs: what flows in.
            others: stacks of adapter tensors, random key, weights.
        """
        return self._run_forward(inputs, others, ())[0]

    def forward_and_save(
        self, inputs: Sequence[Tensor], others: Sequence[Tensor], wanted: tuple[int, ...], keep: bool
    ) -> tuple[Tensor, Saved]:
        """The output, and what the gradient of the wanted inputs and the adapters needs.

        With ``keep`` those are results of the block's products; without, they are computed again from the inputs.
        """
        gradient = self._gradient(_outlines(inputs), wanted, keep)
        output, *products = self._run_forward(inputs, others, gradient.kept)
        read = tuple(x if i in gradient.function.used else None for i, x in enumerate(inputs))
        return output, Saved(gradient.function, read, tuple(products), tuple(p for p in products if p is not output))

    def gradients(self, saved: Saved, others: Sequence[Tensor], d_output: Tensor) -> tuple[Tensor, ...]:
        """Gradient of each wanted input, of each stack of adapter tensors, and of each trained weight.

        Args:
            saved: what ``forward_and_save`` returned.
            others: stacks of adapter tensors, random key, weights.
            d_output: gradient of the output.
        """
        return saved.gradient([*saved.inputs, *others, *saved.products, d_output])

    def footprint(self, inputs: tuple[Outline, ...]) -> CallValues:
        """What is left behind for the gradient of all inputs and adapters, where products are kept."""
        if inputs not in self._footprints:
            wanted = tuple(i for i, x in enumerate(inputs) if x.dtype != _INT32)
            traced = self._trace(inputs, known=True)
            _, _, used = self._differentiate(traced, wanted)
            output = Outline(traced.output.shape, str(traced.output.dtype))
            kept = sum(traced.known[i].size for i in _places(traced.known, used))
            self._footprints[inputs] = CallValues(output, kept, _places(traced.inputs, used))
        return self._footprints[inputs]

    def _run_forward(
        self, inputs: Sequence[Tensor], others: Sequence[Tensor], kept: tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        key = (_outlines(inputs), kept)
        if key not in self._forwards:
            traced = self._trace(key[0], known=False)
            outputs = (traced.output, *(traced.products[i] for i in kept))
            arguments = (*traced.inputs, *traced.others)
            self._forwards[key] = GraphFunction(traced.trace, arguments, outputs, self._device.compiled)
        return self._forwards[key]([*inputs, *others])

    def _gradient(self, inputs: tuple[Outline, ...], wanted: tuple[int, ...], keep: bool) -> _Gradient:
        key = (inputs, wanted, keep)
        if key not in self._gradients:
            traced = self._trace(inputs, known=keep)
            d_output, results, used = self._differentiate(traced, wanted)
            kept = _places(traced.known, used)
            arguments = (*traced.inputs, *traced.others, *(traced.known[i] for i in kept), d_output)
            function = GraphFunction(traced.trace, arguments, results, self._device.compiled)
            self._gradients[key] = _Gradient(function, kept)
        return self._gradients[key]

    def _trace(self, outlines: tuple[Outline, ...], known: bool) -> _Traced:
        """Run the block function on values; with ``known``, products are inputs."""
        trace, kind = Trace(self._device.profile), self._kind
        inputs = tuple(outline.value_in(trace) for outline in outlines)
        stacks = [trace.input(stack.whole_shape, ms.float32) for stack in self._stacks]
        key = trace.input((), ms.int32)
        weights = {name: outline.value_in(trace) for name, outline in kind.weights}
        pieces = split_stacks(stacks, self._stacks)
        adapters = {
            entry.layer: functools.partial(
                entry.adapter.apply,
                {slot.suffix: piece for slot, piece in zip(self._slots, pieces, strict=True) if slot.adapter == i},
                i,
            )
            for i, entry in enumerate(kind.adapters)
        }
        products, stand_ins = [], []

        def product(y: Value) -> Value:
            products.append(y)
            if not known:
                return y
            stand_in = trace.input(y.shape, y.dtype)
            trace.add_step((y,), (stand_in,), lambda d, _: (d,))
            stand_ins.append(stand_in)
            return stand_in

        layers = Layers(weights, kind.transposed, kind.options, adapters, key, outlines[0].shape[0], product)
        return _Traced(
            trace=trace,
            inputs=inputs,
            others=(*stacks, key, *weights.values()),
            pieces=pieces,
            trained_weights=tuple(weights[name] for name in kind.trained),
            output=kind.function(*inputs, layers),
            products=tuple(products),
            known=tuple(stand_ins),
        )

    def _differentiate(self, traced: _Traced, wanted: tuple[int, ...]) -> tuple[Value, tuple[Value, ...], set[int]]:
        """The output's gradient as an input, what is made of it, and the identities of all values that this reads."""
        d_output = traced.trace.input(traced.output.shape, traced.output.dtype)
        sources = (*(traced.inputs[i] for i in wanted), *traced.pieces, *traced.trained_weights)
        gradients = traced.trace.gradients(traced.output, d_output, sources)
        cut = len(wanted), len(wanted) + len(traced.pieces)
        of_stacks = join_stacks(gradients[cut[0] : cut[1]], self._stacks)
        results = (*gradients[: cut[0]], *of_stacks, *gradients[cut[1] :])
        return d_output, results, {id(x) for node in needed_nodes(traced.trace, results) for x in node.inputs}


def _outlines(tensors: Sequence[Tensor]) -> tuple[Outline, ...]:
    return tuple(Outline.of(tensor) for tensor in tensors)


def _places(values: Sequence[Value], identities: set[int]) -> tuple[int, ...]:
    """Which of the values are among those identities."""
    return tuple(i for i, x in enumerate(values) if id(x) in identities)


program = functools.cache(Program)
"""The program of a kind of block on a device: equal arguments give the same one."""


# --- blocks bound to weights ----------------------------------------------------------------------------------------
class Held(Protocol):
    """A tensor that an update may put another in the place of."""

    @property
    def value(self) -> Tensor:
        """What it is now."""
        ...


@dataclass(frozen=True, eq=False)
class BoundBlock:
    """A block with its program and tensors, ready to be applied."""

    block: Block
    program: Program
    weights: tuple[Tensor | None, ...]
    """None in the place of those that are trained."""
    trained: tuple[Held, ...] = ()
    """What of the block is trained: stacks of adapter tensors, then weights, as ``Program.gradients`` has them."""

    def others(self, key: Tensor) -> tuple[Tensor, ...]:
        """What its program is given beside the inputs: stacks of adapter tensors, random key, weights."""
        if not self.trained:
            return key, *self.weights
        values = iter([each.value for each in self.trained])
        stacks = itertools.islice(values, len(self.trained) - self.weights.count(None))
        return *stacks, key, *(next(values) if weight is None else weight for weight in self.weights)


def bind(
    block: Block,
    weights: Mapping[str, Mapping[str, Tensor]],
    device: Device,
    adapters: tuple[AdapterEntry, ...] = (),
    trained_weights: tuple[str, ...] = (),
    trained: tuple[Held, ...] = (),
) -> BoundBlock:
    """Choose a block's program and collect its weights.

    Args:
        block: the block.
        weights: those of all parts, part -> key -> tensor.
        device: where it will run.
        adapters: the block's adapters.
        trained_weights: local names of the weights that are trained, in the order of ``block.names``.
        trained: see ``BoundBlock``.
    """
    held = list(block.held(weights[block.part])) if block.names else []
    places: list[Tensor | None] = list(held)
    for name, own in zip(trained_weights, trained[len(trained) - len(trained_weights) :], strict=True):
        held[block.names.index(name)] = own.value
        places[block.names.index(name)] = None
    outlines = tuple(zip(block.names, _outlines(held), strict=True))
    kind = Kind(block.function, block.options, outlines, block.transposed, adapters, trained_weights)
    return BoundBlock(block, program(kind, device), tuple(places), trained)


Apply = Callable[..., Tensor]
"""How a block is applied: apply(block, *inputs) -> output. The caller decides on what is trained, and on gradients."""


class Forward:
    """Applies blocks without gradients.

    Args:
        bound: block -> its bound form, for every block that will be run.
        keys: random key of each block; without one, a block gets the key 0 (no dropout may be active then).
    """

    def __init__(self, bound: Mapping[Block, BoundBlock], keys: Mapping[Block, Tensor] = MappingProxyType({})) -> None:
        self.bound = bound
        self.keys = keys
        self.no_key = key_tensor(0)

    def others(self, bound: BoundBlock) -> tuple[Tensor, ...]:
        """What a block is given beside its inputs."""
        return bound.others(self.keys.get(bound.block, self.no_key))

    def __call__(self, block: Block, *inputs: Tensor) -> Tensor:
        """Apply one block."""
        bound = self.bound[block]
        return bound.program.forward(inputs, self.others(bound))
