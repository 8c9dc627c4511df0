"""What the memory estimate counts from shapes is what a forward pass holds."""

from typing import Any

import pytest
from mindspore import Tensor

from library.families.base import OutlineSetup
from library.families.sdxl.checkpoint import _expected_parts
from library.families.sdxl.shapes import TINY_SDXL
from library.graphs.block import Block
from library.graphs.program import Outline
from library.models.footprint import FLOAT, Footprint
from library.models.unet import res_block
from library.training.block_tape import BlockTape
from tests.parity.made_up_run import ARGV, SINGLE_OPERATIONS, first_inputs, ready

pytestmark = pytest.mark.usefixtures("device")


class CountingTape(BlockTape):
    """Notes the size of each call's output, and what was kept of it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.counts: list[tuple[Block, int, int]] = []
        self.outputs: dict[int, Tensor] = {}

    def __call__(self, block: Block, *inputs: Tensor) -> Tensor:
        """Apply one block."""
        before = len(self._calls)
        output = super().__call__(block, *inputs)
        kept = sum(x.size for call in self._calls[before:] for x in call.saved.products)
        self.counts.append((block, output.size, kept))
        self.outputs[id(output)] = output
        return output


@pytest.mark.slow
def test_outputs_and_kept_products_are_counted_from_shapes() -> None:
    replay = ready(SINGLE_OPERATIONS, ARGV.replace("--network_train_unet_only", ""), steps=1)
    model, family = replay.training.model, replay.training.family
    tape = CountingTape(replay.trained.bind(model.weights, model.forward.bound, model.device), keep=1.0)
    first_inputs(replay).predict(tape)

    spec = model.spec
    run = Footprint(_expected_parts(TINY_SDXL), replay.trained.blocks, model.device)
    setup = OutlineSetup(chunks=1, train_text=True, noisy=Outline((2, 4, 16, 16), FLOAT))
    family.forward_outlines(spec, run, setup)
    counted = [(block.output, block.kept) for block in run.blocks]
    measured = [(output, kept) for _, output, kept in tape.counts]
    # The estimate counts gradients of all inputs. There are two that nothing trained flows into: the time's
    # sinusoid, and the image of the first res block, of which its first norm keeps nothing then.
    blocks = [block for block, _, _ in tape.counts]
    time, first_res = blocks.index(spec.unet.time), [block.function for block in blocks].index(res_block)
    assert (counted.pop(first_res), measured.pop(first_res)) == ((16384, 2 * 16448), (16384, 16448))
    assert (counted.pop(time), measured.pop(time)) == ((256, 512), (256, 256))
    assert counted == measured
    held = {id(x): x.size for call in tape._calls for x in call.saved.inputs if x is not None and id(x) in tape.outputs}
    assert sum(held.values()) == sum(block.output for block in run.blocks if block.is_read)
    assert 0 < len(held) < len(run.blocks) / 2  # rows between transformer blocks are not held
