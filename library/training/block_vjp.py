"""Gradients as a chain of block vector-Jacobian products.

The forward pass keeps of each block the inputs that its gradient reads and, of a share of the blocks, the results of
their products. The backward pass walks the calls in reverse: one compiled function per block returns the gradients of
its inputs and adapters, and computes again what was not kept. With a share of 0 this is gradient checkpointing at block
grain.
"""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mindspore import Tensor

from library.device.graph_code import release
from library.models.block import Block
from library.models.program import BoundBlock, Forward, Saved


@dataclass(frozen=True, eq=False)
class _Call:
    bound: BoundBlock
    makers: Mapping[int, int]
    """Inputs that depend on something that is trained, and the number of the call that made each."""
    saved: Saved


class BlockTape(Forward):
    """Applies blocks and remembers the calls, so that ``backward`` can go through them.

    Args:
        keep: share of the blocks whose products are kept, 0 to 1; those blocks are spread evenly.
        (the others): see ``Forward``.
    """

    def __init__(self, *args: Any, keep: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._calls: list[_Call] = []
        self._made: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        """Identity of an output -> the output, while somebody has it, and the number of its call."""
        self._keep = keep
        self._keepers = 0

    def __call__(self, block: Block, *inputs: Tensor) -> Tensor:
        """Apply one block; remembered only if something that is trained flows into or out of it."""
        bound = self.bound[block]
        makers = {i: call for i, x in enumerate(inputs) if (call := self._maker(x)) is not None}
        if not makers and bound.segment is None:
            return super().__call__(block, *inputs)
        output, saved = bound.program.forward_and_save(inputs, self.others(bound), tuple(makers), self._is_turn())
        self._made[id(output)] = weakref.ref(output), len(self._calls)
        self._calls.append(_Call(bound, makers, saved))
        return output

    def _maker(self, x: Tensor) -> int | None:
        """The number of the call that made a tensor. Identities of tensors that are gone are given to new ones."""
        made = self._made.get(id(x))
        return made[1] if made is not None and made[0]() is x else None

    def _is_turn(self) -> bool:
        """Whether the next block keeps its products, so that their share comes out."""
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
        flowing = {len(self._calls) - 1: d_output}
        while self._calls:
            call = self._calls.pop()
            d_out = flowing.pop(len(self._calls), None)
            if d_out is None:
                continue
            gradients = call.bound.program.gradients(call.saved, self.others(call.bound), d_out)
            release(call.saved.own)
            for maker, d_input in zip(call.makers.values(), gradients, strict=False):
                flowing[maker] = flowing[maker] + d_input if maker in flowing else d_input
            segment = call.bound.segment
            if segment is not None:
                d_theta = gradients[-1]
                grads[segment] = grads[segment] + d_theta if segment in grads else d_theta
        self._made.clear()
        return grads
