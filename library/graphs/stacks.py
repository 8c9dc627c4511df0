"""Trained tensors that are alike as one: fewer inputs of a graph, and fewer operations to split and join them."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from library.graphs import operations as op
from library.graphs.values import Shape, Value


@dataclass(frozen=True)
class Stack:
    """Trained tensors that are alike, one behind the other along their first axis."""

    count: int
    shape: Shape
    """Of one of them."""
    factor: float = 1.0
    """What they are multiplied by before they are used."""

    @property
    def whole_shape(self) -> Shape:
        """The shape of all of them together."""
        return (self.count * self.shape[0], *self.shape[1:])


def split_stacks(tensors: Sequence[Value], stacks: Sequence[Stack]) -> tuple[Value, ...]:
    """The scaled tensors that stacks consist of, those of a stack by one operation."""
    split = (op.split(_scaled(x, stack.factor), 0, stack.count) for x, stack in zip(tensors, stacks, strict=True))
    return tuple(itertools.chain.from_iterable(split))


def join_stacks(gradients: Sequence[Value], stacks: Sequence[Stack]) -> Iterator[Value]:
    """The gradient of each stack, from those of the tensors that ``split_stacks`` made of it."""
    remaining = iter(gradients)
    for stack in stacks:
        yield _scaled(op.concat(tuple(itertools.islice(remaining, stack.count)), 0), stack.factor)


def _scaled(x: Value, factor: float) -> Value:
    return x if factor == 1.0 else x * factor
