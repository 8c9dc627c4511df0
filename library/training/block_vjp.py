"""Gradients as a chain of block vector-Jacobian products.

The forward pass keeps each block's inputs and, of a share of the blocks, the results of their products. The backward
pass walks the calls in reverse: one compiled function per block returns the gradients of its inputs and adapters, and
computes again what was not kept. With a share of 0 this is gradient checkpointing at block grain.
"""

from dataclasses import dataclass
from typing import Any

from mindspore import Tensor

from library.device.graph_code import release
from library.models.block import Block
from library.models.program import BoundBlock, Forward


@dataclass(frozen=True, eq=False)
class _Call:
    bound: BoundBlock
    inputs: tuple[Tensor, ...]
    output: Tensor
    wanted: tuple[int, ...]
    """Which inputs depend on something that is trained."""
    kept: tuple[Tensor, ...] | None
    """Results of its products; None if they are to be computed again."""


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
        kept = None
        if self._is_turn():
            output, kept = bound.program.forward_and_keep(inputs, self.others(bound), wanted)
        else:
            output = super().__call__(block, *inputs)
        self._calls.append(_Call(bound, inputs, output, wanted, kept))
        self._trained.add(id(output))
        return output

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
        flowing = {id(self._calls[-1].output): d_output}
        while self._calls:
            call = self._calls.pop()
            d_out = flowing.pop(id(call.output), None)
            if d_out is None:
                continue
            bound = call.bound
            gradients = bound.program.gradients(call.inputs, self.others(bound), call.wanted, call.kept, d_out)
            release(product for product in call.kept or () if product is not call.output)
            for i, d_input in zip(call.wanted, gradients, strict=False):
                source = id(call.inputs[i])
                flowing[source] = flowing[source] + d_input if source in flowing else d_input
            if bound.segment is not None:
                d_theta = gradients[-1]
                grads[bound.segment] = grads[bound.segment] + d_theta if bound.segment in grads else d_theta
        self._trained.clear()
        return grads
