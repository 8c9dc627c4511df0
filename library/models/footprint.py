"""How many values a forward pass leaves behind for its gradient, from shapes alone: nothing is computed.

The model's own forward functions are run on outlines in the place of tensors, and its blocks are traced, so that what
is counted is what is run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from mindspore import Tensor

from library.device.profile import Device
from library.graphs.block import Block
from library.graphs.program import AdapterEntry, Kind, Outline, program
from library.graphs.values import Shape
from library.models.weights import held_shape

Shapes = Mapping[str, Mapping[str, Shape]]
"""Part -> key -> shape of a weight, as in a checkpoint."""
FLOAT = "Float32"


class InBlock(Protocol):
    """What is needed of training.trained.TrainedBlock."""

    @property
    def adapters(self) -> tuple[AdapterEntry, ...]:
        """The block's adapters."""
        ...

    @property
    def weights(self) -> tuple[str, ...]:
        """Local names of the weights that are trained."""
        ...


@dataclass
class BlockValues:
    """Numbers of values around one block."""

    output: int
    kept: int
    """Results of its products, for a gradient that does not compute them again."""
    is_read: bool = False
    """Whether another block's gradient reads the output even where products are kept."""


@dataclass
class Footprint:
    """Applies blocks to outlines (a ``program.Apply``) and counts; one entry of ``blocks`` per call."""

    shapes: Shapes
    trained: Mapping[Block, InBlock]
    """What is trained in each block of which anything is."""
    device: Device
    blocks: list[BlockValues] = field(default_factory=list)
    _outputs: dict[int, tuple[Outline, BlockValues]] = field(default_factory=dict)
    """Identity of an output -> itself, and the block that it is of."""

    def forget(self) -> None:
        """Count from here on only."""
        self.blocks.clear()

    def __call__(self, block: Block, *inputs: Outline | Tensor) -> Outline:
        """The outline of a block's output."""
        weights = tuple(
            (name, Outline(held_shape(name, self.shapes[block.part][block.prefix + name]), FLOAT))
            for name in block.names
        )
        mine = self.trained.get(block)
        adapters, trained = (mine.adapters, mine.weights) if mine else ((), ())
        kind = Kind(block.function, block.options, weights, block.transposed, adapters, trained)
        outlines = tuple(x if isinstance(x, Outline) else Outline.of(x) for x in inputs)
        values = program(kind, self.device).footprint(outlines)
        for i in values.read:
            if id(inputs[i]) in self._outputs:
                self._outputs[id(inputs[i])][1].is_read = True
        output = Outline(*values.output)  # one of its own for each call
        self.blocks.append(BlockValues(output.size, values.kept))
        self._outputs[id(output)] = output, self.blocks[-1]
        return output
