"""Compiling blocks: one program per kind of block, shared by every block of that kind.

A program takes the block's inputs, one flat vector with all its adapter tensors, a random key, and its frozen weights;
all of them are inputs of the compiled graph, so equal blocks never compile twice (docs/decisions/0002).
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from library.device import kernels
from library.device.random import key_tensor
from library.models.block import Block

AdapterEntry = tuple[str, object]
"""(local layer name, adapter); of the adapter see ``shapes``, ``factors``, ``build`` in networks.network_base."""


class Slot(NamedTuple):
    """The place of one adapter tensor in its block's flat vector."""

    adapter: int
    """Which of the block's adapters."""
    suffix: str
    shape: tuple[int, ...]
    factor: float
    """What the tensor is multiplied by before it is used."""


def slots_of(adapters: tuple[AdapterEntry, ...]) -> tuple[Slot, ...]:
    """A block's adapter tensors in the order of its flat vector: those alike are neighbours, to be cut as one."""
    slots = [
        Slot(i, suffix, shape, adapter.factors().get(suffix, 1.0))
        for i, (_, adapter) in enumerate(adapters)
        for suffix, shape in adapter.shapes().items()
    ]
    kinds = list(dict.fromkeys((slot.shape, slot.factor) for slot in slots))
    return tuple(sorted(slots, key=lambda slot: kinds.index((slot.shape, slot.factor))))


@dataclass
class Program:
    """The forward pass of a kind of block, and its vector-Jacobian products by which inputs need one."""

    forward: Callable[..., Tensor]
    """(*inputs, theta, key, *frozen) -> output."""
    forward_and_keep: Callable[..., tuple[Tensor, tuple[Tensor, ...]]]
    """The same, and what the block keeps for its gradient."""
    keeps: bool
    """Whether the block keeps anything."""
    _make_vjp: Callable[[tuple[int, ...]], Callable[..., tuple[Tensor, ...]]]
    _vjps: dict[tuple[int, ...], Callable[..., tuple[Tensor, ...]]] = field(default_factory=dict)

    def vjp(self, wanted: tuple[int, ...]) -> Callable[..., tuple[Tensor, ...]]:
        """(*inputs, theta, key, frozen, kept, d_output) -> (d_input for each wanted index, ..., d_theta).

        ``kept`` is what the forward pass kept; where it is empty, everything is computed again.
        """
        if wanted not in self._vjps:
            self._vjps[wanted] = self._make_vjp(wanted)
        return self._vjps[wanted]


@functools.cache
def program(
    function: Callable[..., Any],
    names: tuple[str, ...],
    arity: int,
    kept_names: tuple[str, ...],
    adapters: tuple[AdapterEntry, ...],
    compiled: bool,
) -> Program:
    """The program of a kind of block.

    Args:
        function: the block function.
        names: local names of the frozen weights.
        arity: number of inputs.
        kept_names: what the function returns behind its output.
        adapters: the block's adapters, in the order of their tensors.
        compiled: compile to graphs; False runs operation by operation, for debugging.
    """
    forward = _make_forward(function, names, kept_names, adapters)

    def run_and_keep(*arguments):  # type: ignore[no-untyped-def]  # read by the graph compiler
        return forward(arguments[:arity], arguments[arity], arguments[arity + 1], arguments[arity + 2 :], ())

    def run(*arguments):  # type: ignore[no-untyped-def]  # read by the graph compiler
        return run_and_keep(*arguments)[0]

    def make_vjp(wanted: tuple[int, ...]) -> Callable[..., tuple[Tensor, ...]]:
        vjp = _make_vjp(_OF_ARITY[arity](forward), arity, wanted)
        return ms.jit(vjp) if compiled else vjp

    if compiled:
        return Program(ms.jit(run), ms.jit(run_and_keep), bool(kept_names), make_vjp)
    return Program(run, run_and_keep, bool(kept_names), make_vjp)


def _make_forward(
    function: Callable[..., Any],
    names: tuple[str, ...],
    kept_names: tuple[str, ...],
    adapters: tuple[AdapterEntry, ...],
) -> Callable[..., tuple[Tensor, tuple[Tensor, ...]]]:
    """(inputs, theta, key, frozen, kept) -> (output, what to keep), for use inside a graph."""
    name_at = {name: i for i, name in enumerate(names)}
    kept_at = {name: i for i, name in enumerate(kept_names)}
    returns_kept = bool(kept_names)
    slots = slots_of(adapters)
    split = kernels.make_split(tuple((slot.shape, slot.factor) for slot in slots))
    applies = {}
    for i, (layer, adapter) in enumerate(adapters):
        positions = {slot.suffix: at for at, slot in enumerate(slots) if slot.adapter == i}
        applies[layer] = adapter.build(positions, i)

    def forward(inputs, theta, key, frozen, kept):  # type: ignore[no-untyped-def]  # read by the graph compiler
        known = kept_at if len(kept) > 0 else {}
        batch = inputs[0].shape[0]
        pieces = split(theta) if len(applies) > 0 else ()
        result = function(*inputs, (name_at, frozen, applies, pieces, key, batch, known, kept))
        if returns_kept:
            return result
        return result, ()

    return forward


# Graphs differentiate functions with named parameters only, hence one function per number of inputs. The values of a
# plain tuple argument would be compiled into the graph as constants: the frozen weights are spread out in the forward
# pass, and are a tuple marked mutable where the graph differentiates.
def _one(forward):  # type: ignore[no-untyped-def]
    def call(x, theta, key, frozen, kept):  # type: ignore[no-untyped-def]
        return forward((x,), theta, key, frozen, kept)[0]

    return call


def _two(forward):  # type: ignore[no-untyped-def]
    def call(x, y, theta, key, frozen, kept):  # type: ignore[no-untyped-def]
        return forward((x, y), theta, key, frozen, kept)[0]

    return call


def _three(forward):  # type: ignore[no-untyped-def]
    def call(x, y, z, theta, key, frozen, kept):  # type: ignore[no-untyped-def]
        return forward((x, y, z), theta, key, frozen, kept)[0]

    return call


_OF_ARITY = {1: _one, 2: _two, 3: _three}
_GRAD = ops.GradOperation(get_all=True, sens_param=True)


def _make_vjp(call, arity, wanted):  # type: ignore[no-untyped-def]
    """The gradients of the wanted inputs, then of theta; the compiler drops what is not picked."""

    def vjp(*arguments):  # type: ignore[no-untyped-def]
        grads = _GRAD(call)(*arguments)
        picked = ()
        for i in wanted:
            picked = picked + (grads[i],)
        return picked + (grads[arity],)

    return vjp


# --- blocks bound to weights ----------------------------------------------------------------------------------------
NO_THETA = np.zeros(1, np.float32)
"""Stands for the adapter vector of a block that has none."""


@dataclass(frozen=True, eq=False)
class BoundBlock:
    """A block with its program and weights, ready to be applied."""

    program: Program
    frozen: tuple[Tensor, ...]
    frozen_mutable: tuple[Tensor, ...]
    """The same tensors, in the form that a VJP takes."""
    segment: int | None
    """Which segment of the trained vector is this block's, or None."""


def bind(
    block: Block,
    weights: Mapping[str, Mapping[str, Tensor]],
    adapters: tuple[AdapterEntry, ...] = (),
    segment: int | None = None,
    compiled: bool = True,
) -> BoundBlock:
    """Choose a block's program and collect its weights out of those of all parts (part -> key -> tensor)."""
    chosen = program(block.function, block.names, block.arity, block.kept, adapters, compiled)
    frozen = block.frozen(weights[block.part]) if block.names else ()
    return BoundBlock(chosen, frozen, ms.mutable(frozen) if frozen else (), segment)


class Forward:
    """Applies blocks without gradients; also the plain pass that MindSpore itself can differentiate.

    Args:
        bound: block -> its bound form, for every block that will be run.
        segments: the adapter vector of each segment.
        keys: random key of each segment; without one, blocks get the key 0 (no dropout may be active then).
    """

    def __init__(
        self,
        bound: Mapping[Block, BoundBlock],
        segments: tuple[Tensor, ...] = (),
        keys: tuple[Tensor, ...] | None = None,
    ) -> None:
        self.bound = bound
        self.segments = segments
        self.keys = keys
        self.no_theta = Tensor(NO_THETA)
        self.no_key = key_tensor(0)

    def theta_and_key(self, bound: BoundBlock) -> tuple[Tensor, Tensor]:
        """The adapter vector and random key of one block."""
        if bound.segment is None:
            return self.no_theta, self.no_key
        key = self.no_key if self.keys is None else self.keys[bound.segment]
        return self.segments[bound.segment], key

    def forward_and_keep(self, bound: BoundBlock, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Apply one block; its output, and what it keeps for its gradient."""
        output, kept = bound.program.forward_and_keep(*inputs, *self.theta_and_key(bound), *bound.frozen)
        return output, ms.mutable(tuple(kept))

    def __call__(self, block: Block, *inputs: Tensor) -> Tensor:
        """Apply one block."""
        bound = self.bound[block]
        return bound.program.forward(*inputs, *self.theta_and_key(bound), *bound.frozen)
