"""Gradients as a chain of block vector-Jacobian products.

The forward pass keeps of each block the inputs that its gradient reads and, of a share of the blocks, the results of
their products. The backward pass walks the calls in reverse: one compiled function per block returns the gradients of
its inputs and of what is trained in it, and computes again what was not kept. A gradient of something trained is
handed over as soon as the chain leaves the block, so that those of all blocks need never exist together. With a share
of 0 this is gradient checkpointing at block grain.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mindspore import Tensor

from library.graphs.block import Block
from library.graphs.graph_code import release
from library.graphs.program import BoundBlock, Forward, Saved


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
        if not makers and not bound.trained:
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

    def backward(self, d_output: Tensor, take: Callable[[Any, Tensor], None]) -> None:
        """Go back through the calls. The tape is empty afterwards.

        Args:
            d_output: gradient of the last call's output.
            take: called with something that is trained and its gradient, when the chain has left its block for good;
                what is trained may be changed then. Of a block that no gradient reaches nothing is handed over.
        """
        calls_left = Counter(id(call.bound) for call in self._calls)
        waiting: dict[int, list[Tensor]] = {}
        flowing = {len(self._calls) - 1: d_output}
        while self._calls:
            call = self._calls.pop()
            number = id(call.bound)
            calls_left[number] -= 1
            if len(self._calls) in flowing:
                mine = self._back_through(call, flowing)
                others = waiting.pop(number, None)
                waiting[number] = [a + b for a, b in zip(others, mine, strict=True)] if others else mine
                del mine, others  # what is handed over is held by nobody here while the next block's are computed
            if not calls_left[number]:
                _hand_over(call.bound, waiting.pop(number, []), take)
        self._made.clear()

    def _back_through(self, call: _Call, flowing: dict[int, Tensor]) -> list[Tensor]:
        """Pass the gradient of the output of the call that was just taken off on to its inputs.

        Args:
            call: which.
            flowing: number of a call -> gradient of its output, as far as it is known.

        Returns:
            Gradients of what is trained in its block.
        """
        bound = call.bound
        d_inputs_and_trained = bound.program.gradients(call.saved, self.others(bound), flowing.pop(len(self._calls)))
        release(call.saved.own, bound.program.profile)
        for maker, d_input in zip(call.makers.values(), d_inputs_and_trained, strict=False):
            flowing[maker] = flowing[maker] + d_input if maker in flowing else d_input
        return list(d_inputs_and_trained[len(call.makers) :])


def _hand_over(bound: BoundBlock, gradients: list[Tensor], take: Callable[[Any, Tensor], None]) -> None:
    for trained, gradient in zip(bound.trained, gradients, strict=False):
        take(trained, gradient)
