"""Gradients as a chain of block vector-Jacobian products.

The forward pass keeps each block's inputs only. The backward pass walks the calls in reverse: one compiled function per
block recomputes it and returns the gradients of its inputs and adapters. This is gradient checkpointing at block
grain; it stores nothing but what flows between blocks.
"""

from dataclasses import dataclass

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


class BlockTape(Forward):
    """Applies blocks and remembers the calls, so that ``backward`` can go through them."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._calls: list[_Call] = []
        self._trained: set[int] = set()

    def __call__(self, block: Block, *inputs: Tensor) -> Tensor:
        """Apply one block; remembered only if something that is trained flows into or out of it."""
        output = super().__call__(block, *inputs)
        bound = self.bound[block]
        wanted = tuple(i for i, x in enumerate(inputs) if id(x) in self._trained)
        if wanted or bound.segment is not None:
            self._calls.append(_Call(bound, inputs, output, wanted))
            self._trained.add(id(output))
        return output

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
            *d_inputs, d_theta = vjp(*call.inputs, theta, key, call.bound.frozen_mutable, d_out)
            for i, d_input in zip(call.wanted, d_inputs, strict=True):
                source = id(call.inputs[i])
                flowing[source] = flowing[source] + d_input if source in flowing else d_input
            segment = call.bound.segment
            if segment is not None:
                grads[segment] = grads[segment] + d_theta if segment in grads else d_theta
        self._trained.clear()
        return grads
