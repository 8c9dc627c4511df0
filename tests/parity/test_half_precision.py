"""Blocks in half precision, as Ascend runs them: traced only, since a CPU has no such kernels."""

from typing import Any

import numpy as np
import pytest

from library.families.sdxl.checkpoint import SdxlWeights, _expected_parts, lora_targets
from library.families.sdxl.family import infer_spec
from library.families.sdxl.forward import all_blocks, encode_text, predict
from library.families.sdxl.shapes import TINY_SDXL
from library.graphs import kernels
from library.graphs.program import Outline
from library.graphs.values import Trace
from library.models import footprint
from library.models.footprint import FLOAT, Footprint
from library.training.trained import Trainable
from networks.lora import LoRAAdapter
from networks.network_base import AdaptedLayer, Network

pytestmark = pytest.mark.usefixtures("device")

MIXED = ("Cast", "Gather", "Depend")
"""Operations whose inputs may be of different types."""


@pytest.mark.parametrize("half", ["Float16", "BFloat16"])
@pytest.mark.parametrize("flash", [False, True])
def test_every_operation_gets_inputs_of_one_type(half: str, flash: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With adapters in float32 beside every kind of layer, dropouts and all; forward passes and gradients."""
    record, mixed, kinds = Trace.record, [], set()

    def checked(self: Trace, function: Any, inputs: Any, *others: Any) -> Any:
        name = getattr(function, "name", "function")
        types = {str(x.dtype) for x in inputs}
        kinds.add((name, *types))
        if len(types) > 1 and name not in MIXED:
            mixed.append((name, [(x.shape, str(x.dtype)) for x in inputs]))
        return record(self, function, inputs, *others)

    monkeypatch.setattr(Trace, "record", checked)
    monkeypatch.setattr(footprint, "FLOAT", half)
    monkeypatch.setattr(kernels, "FLASH_ATTENTION", flash)
    for only_on_a_cpu in ("EXPLICIT_BROADCAST", "UNFOLD_CONV", "GATHER_HEADS", "OWN_CONV_GRADIENT"):
        monkeypatch.setattr(kernels, only_on_a_cpu, False)
    shapes = _expected_parts(TINY_SDXL)
    arrays = {part: {k: np.broadcast_to(np.float32(0), s) for k, s in named.items()} for part, named in shapes.items()}
    spec = infer_spec(arrays)
    layers = {
        target.name: AdaptedLayer(
            target, LoRAAdapter(target.shape, 4, 1.0, target.stride, target.padding, 0.1, 0.2, 0.3 + 0.01 * flash)
        )
        for target in lora_targets(SdxlWeights(arrays, {}))
    }
    trainable = Trainable(Network(layers, {}), all_blocks(spec))
    run = Footprint(shapes, {segment.block: segment.adapters for segment in trainable.segments})
    ids = np.zeros((2, 1, 77), np.int64)
    text = encode_text(spec, run, (ids, ids))  # type: ignore[arg-type]
    noisy = Outline((2, 4, 16, 16), FLOAT)
    out = predict(spec, run, noisy, np.zeros(2), text, np.zeros((2, 6)))  # type: ignore[arg-type]
    assert not mixed
    assert out == Outline((2, 4, 16, 16), FLOAT)
    assert ("MatMul", half) in kinds and ("Conv2D", half) in kinds and ("ReduceMean", FLOAT) in kinds
    assert ("MatMul", FLOAT) not in kinds
