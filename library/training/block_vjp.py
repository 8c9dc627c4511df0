"""Gradients as a chain of block vector-Jacobian products.

The forward pass keeps each block's inputs and, of a share of the blocks, the results of their products. The backward
pass walks the calls in reverse: one compiled function per block returns the gradients of its inputs and adapters, and
computes again what was not kept. With a share of 0 this is gradient checkpointing at block grain.
"""

from dataclasses import dataclass
from typing import Any

from mindspore import Tensor

from library.models.block import Block
from library.models.program import BoundBlock, Forward


@dataclass(frozen=True, eq=False)
class _Call:
    bound: BoundBlock
    inputs: tuple[Tensor, ...]
    output: Tensor
    wanted: tuple[int, ...]
    """Which inputs depend on something that is trained."""
    kept: tuple[Tensor, ...]
    """Results of its products; empty if they are to be computed again."""


class BlockTape(Forward):
    """Applies blocks and remembers the calls, so that ``backward`` can go through them.

    Args:
        keep: share of the blocks whose products are kept, 0 to 1; those blocks are spread evenly.
        (the others): see ``Forward``.
    """

    def __init__(self, *args: Any, keep: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._calls: list[_Call] = []
        self._trained: set[int] = set()
        self._keep = keep
        self._keepers = 0

    def __call__(self, block: Block, *inputs: Tensor) -> Tensor:
        """Apply one block; remembered only if something that is trained flows into or out of it."""
        bound = self.bound[block]
        wanted = tuple(i for i, x in enumerate(inputs) if id(x) in self._trained)
        if not wanted and bound.segment is None:
            return super().__call__(block, *inputs)
        kept: tuple[Tensor, ...] = ()
        if bound.program.keeps and self._is_turn():
            output, kept = self.forward_and_keep(bound, *inputs)
        else:
            output = super().__call__(block, *inputs)
        self._calls.append(_Call(bound, inputs, output, wanted, kept))
        self._trained.add(id(output))
        return output

    def _is_turn(self) -> bool:
        """Whether the next block that could keep something does, so that their share comes out."""
        self._keepers += 1
        return int(self._keepers * self._keep) > int((self._keepers - 1) * self._keep)

    def backward(self, d_output: Tensor) -> dict[int, Tensor]:
        """Gradients of the adapter segments.

        Args:
            d_output: gradient of the last call's output.

        Returns:
            segment -> gradient of its vector; a segment that no call used is absent. The tape is empty afterwards.
        """
        grads: dict[int, Tensor] = {}
        flowing = {id(self._calls[-1].output): d_output}
        while self._calls:
            call = self._calls.pop()
            d_out = flowing.pop(id(call.output), None)
            if d_out is None:
                continue
            vjp = call.bound.program.vjp(call.wanted)
            theta, key = self.theta_and_key(call.bound)
            *d_inputs, d_theta = vjp(*call.inputs, theta, key, call.bound.frozen_mutable, call.kept, d_out)
            for i, d_input in zip(call.wanted, d_inputs, strict=True):
                source = id(call.inputs[i])
                flowing[source] = flowing[source] + d_input if source in flowing else d_input
            segment = call.bound.segment
            if segment is not None:
                grads[segment] = grads[segment] + d_theta if segment in grads else d_theta
        self._trained.clear()
        return grads
