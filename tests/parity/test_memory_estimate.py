"""The memory estimate: what is counted, against what was measured, and what is proposed."""

from dataclasses import replace

import numpy as np
import pytest

from library.device.profile import CPU, Device
from library.families.base import BaseWeights
from library.families.sdxl.checkpoint import _expected_parts
from library.families.sdxl.family import SdxlFamily
from library.families.sdxl.shapes import FULL_SDXL
from library.runs.memory_estimate import GB, MemorySetup, estimate_memory, memory_lines
from library.training.optimizers.adamw import AdamW
from library.training.optimizers.rule import state_bytes
from library.training.trained import Group, trained_adapters
from networks.lora import LoRAAdapter
from networks.network_base import AdaptedLayer, Network, init_tensors


@pytest.fixture(scope="module")
def setup() -> MemorySetup:
    """The full SDXL's UNet alone, as benchmarks/bench_step.py trains it."""
    parts = _expected_parts(FULL_SDXL)
    outlines = {
        part: {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
        for part, shapes in parts.items()
    }
    family, weights = SdxlFamily(), BaseWeights(outlines, {})
    spec = family.spec(weights)
    targets = [t for t in family.targets(weights) if t.part == "unet" and not t.extended]
    layers = {t.name: AdaptedLayer(t, LoRAAdapter(t.shape, 16, 1.0)) for t in targets}
    tensors = init_tensors(layers, lambda name: np.random.default_rng(0))
    trained = trained_adapters(Network(layers, tensors), spec.unet_blocks(), lambda key: Group("unet", 1e-4))
    return MemorySetup(
        family=family,
        spec=spec,
        shapes=parts,
        vae_values=0,
        trained_values=trained.size,
        optimizer_bytes=sum(len(each.names) * state_bytes(AdamW(), each.shape) for each in trained.tensors),
        trained=trained.blocks,
        device=Device(CPU),
        batch_size=1,
        resolution=(512, 512),
        text_is_cached=True,
    )


@pytest.mark.parametrize(
    ("pixels", "kept_share", "measured_gb"),
    [(256, 1.0, 12.54), (512, 0.0, 12.47), (512, 0.5, 13.70), (512, 1.0, 14.46), (1024, 0.0, 13.80)],
)
def test_the_estimate_is_near_measured_peaks(
    setup: MemorySetup, pixels: int, kept_share: float, measured_gb: float
) -> None:
    """Peaks of bench_step.py --size full --batch 1 --rank 16 (docs/log/performance.md)."""
    parts = estimate_memory(replace(setup, resolution=(pixels, pixels), kept_share=kept_share)).parts
    assert sum(parts.values()) / GB == pytest.approx(measured_gb, rel=0.03)


def test_the_whole_base_model_counts_at_the_start(setup: MemorySetup) -> None:
    cached = estimate_memory(setup)
    assert cached.start > cached.parts["UNet"] + 3 * GB
    assert estimate_memory(replace(setup, text_is_cached=False)).parts["text encoders"] == pytest.approx(
        3.27 * GB, rel=0.01
    )


def test_what_fits_is_only_told(setup: MemorySetup) -> None:
    lines = memory_lines(setup, 64 * GB)
    assert lines[0].startswith("memory: about 14.5 GB") and "64.0 GB are free" in lines[0]
    assert not any("help" in line for line in lines)


def test_what_does_not_fit_comes_with_what_would(setup: MemorySetup) -> None:
    lines = "\n".join(memory_lines(replace(setup, batch_size=4, text_is_cached=False), 20 * GB))
    assert "will not fit" in lines
    for option in (
        "--gradient_checkpointing:",
        "_keep=0.5",
        "--cache_text_encoder_outputs",
        "batch_size = 1",
        "384 x 384",
    ):
        assert option in lines
    assert "batch_size = 1: 17." in lines


def test_every_proposal_takes_less(setup: MemorySetup) -> None:
    proposals = [line for line in memory_lines(replace(setup, batch_size=4), 1 * GB) if " less with " in line]
    assert len(proposals) == 5
    assert all(float(line.split()[0]) > 0 for line in proposals)


def test_what_would_not_help_is_not_proposed(setup: MemorySetup) -> None:
    """With cached text, a small batch takes hardly more than the whole base model does before the first step."""
    lines = memory_lines(setup, 1 * GB)
    assert estimate_memory(setup).total - estimate_memory(setup).start < 0.05 * GB
    assert lines[-1].endswith("The base model alone takes so much when it is loaded")
