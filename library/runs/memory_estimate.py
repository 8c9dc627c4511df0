"""How much memory a run will take, before anything is loaded, and which options make it fit.

The counts are those of the program: weights by their shapes, the vectors of what is trained, what the forward pass
leaves behind (models.footprint). Checked against measured peaks in docs/log/performance.md.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from library.data.dataset import TrainDataset
from library.data.text.tokenizer import CHUNK, token_limit
from library.device.profile import Device
from library.families.base import BaseWeights, Family, OutlineSetup
from library.graphs.block import Block
from library.graphs.program import Outline
from library.models.footprint import FLOAT, BlockValues, Footprint, Shapes
from library.settings.arguments import TrainArgs
from library.settings.sizes import LATENT_CHANNELS, LATENT_PIXELS
from library.training.optimizers.rule import Rule, state_bytes
from library.training.trained import Trained, TrainedBlock

logger = logging.getLogger(__name__)

GB = 1e9
FLOAT_BYTES = 4
LIBRARIES = 0.9 * GB
"""Python, MindSpore, compiled blocks and what their kernels keep (measured)."""
VECTORS = 2
"""The trained values and their gradients."""
POOL = 0.9
"""Memory that MindSpore's pool takes for intermediate results, as a multiple of the blocks' outputs (measured)."""
WORTH_IT = 0.05 * GB
"""What an option must save to be proposed."""
COMFORT = 0.95
"""Share of the machine's memory that may be planned for."""


@dataclass(frozen=True, kw_only=True)
class MemorySetup:
    """What a run's memory depends on."""

    family: Family
    spec: Any
    """The model's layout."""
    shapes: Shapes
    """Part -> key -> shape of the base model's weights."""
    vae_values: int
    value_bytes: int = FLOAT_BYTES
    """Bytes of a frozen weight and of what flows between blocks: 4, or 2 in half precision."""
    trained_values: int
    optimizer_bytes: int
    """Of the optimizer's state."""
    trained: Mapping[Block, TrainedBlock]
    """What is trained in each block of which anything is."""
    device: Device
    batch_size: int
    resolution: tuple[int, int]
    """Width, height of the largest bucket, in pixels."""
    chunks: int = 1
    """Chunks of 77 tokens per caption."""
    train_text: bool = False
    text_is_cached: bool = False
    """Whether the text encoders are gone before the first step."""
    kept_share: float = 1.0
    """Share of the blocks whose products are kept; 1 without --gradient_checkpointing."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by what they hold, in the order in which they are shown."""

    parts: Mapping[str, float]
    """During the steps."""
    start: float
    """Before the first step, with the whole base model loaded."""

    @property
    def total(self) -> float:
        """The peak."""
        return max(self.start, sum(self.parts.values()))


def memory_setup(
    args: TrainArgs,
    family: Family,
    dataset: TrainDataset,
    weights: BaseWeights,
    trained: Trained,
    rule: Rule,
    device: Device,
) -> MemorySetup:
    """What a run's flags and data say; the batch is the one with the most pixels.

    Args:
        args: the flags.
        family: of the base model.
        dataset: the data set.
        weights: the base model; only shapes are looked at.
        trained: what is trained.
        rule: the optimizer's.
        device: where.
    """
    _, batch_size, resolution, tokens = max(
        (size * math.prod(bucket.resolution), size, bucket.resolution, tokens)
        for data in dataset.datasets
        for tokens in [token_limit(data.config.max_token_length)]
        for bucket in data.buckets
        for size in [min(data.config.batch_size, len(bucket.samples))]
    )
    return MemorySetup(
        family=family,
        spec=family.spec(weights),
        shapes={part: {key: array.shape for key, array in named.items()} for part, named in weights.parts.items()},
        vae_values=sum(array.size for array in weights.vae.values()),
        value_bytes=device.value_bytes,
        trained_values=trained.size,
        optimizer_bytes=sum(len(each.names) * state_bytes(rule, each.shape) for each in trained.tensors),
        trained=trained.blocks,
        device=device,
        batch_size=batch_size,
        resolution=resolution,
        chunks=tokens // (CHUNK - 2),
        train_text=not args.network.network_train_unet_only,
        text_is_cached=args.cache.text,
        kept_share=args.compute.kept_share,
    )


def estimate_memory(setup: MemorySetup) -> MemoryEstimate:
    """What a run's memory holds, by parts."""
    blocks = _blocks(setup)
    size = {part: setup.value_bytes * sum(map(math.prod, shapes.values())) for part, shapes in setup.shapes.items()}
    unet, vae = size[setup.family.facts.unet_part], setup.vae_values * FLOAT_BYTES
    text = sum(size.values()) - unet
    outputs, kept = sum(block.output for block in blocks), sum(block.kept for block in blocks)
    passed_on = sum(block.output for block in blocks if not block.is_read)  # read again by blocks that keep nothing
    vector = FLOAT_BYTES * setup.trained_values
    return MemoryEstimate(
        {
            "UNet": unet,
            "text encoders": 0 if setup.text_is_cached else text,
            "VAE": vae,
            "what is trained, and its gradients": VECTORS * vector,
            "optimizer": setup.optimizer_bytes,
            "activations kept for the gradient": (outputs + setup.kept_share * (kept - passed_on)) * setup.value_bytes,
            "intermediate results": POOL * outputs * setup.value_bytes,
            "libraries and compiled blocks": LIBRARIES,
        },
        start=unet + text + vae + LIBRARIES,
    )


def _blocks(setup: MemorySetup) -> Sequence[BlockValues]:
    run = Footprint(setup.shapes, setup.trained, setup.device)
    width, height = (side // LATENT_PIXELS for side in setup.resolution)
    noisy = Outline((setup.batch_size, LATENT_CHANNELS, height, width), FLOAT)
    setup.family.forward_outlines(setup.spec, run, OutlineSetup(setup.chunks, setup.train_text, noisy))
    return run.blocks


def log_memory(setup: MemorySetup, available: float, always: bool) -> None:
    """Log the estimate, as a warning where it does not fit; else only if ``always``."""
    if estimate_memory(setup).total > COMFORT * available:
        logger.warning("\n".join(memory_lines(setup, available)))
    elif always:
        logger.info("\n".join(memory_lines(setup, available)))


def memory_lines(setup: MemorySetup, available: float) -> list[str]:
    """The estimate as lines of text; where it does not fit into ``available`` bytes, also what would."""
    estimate = estimate_memory(setup)
    lines = [f"memory: about {_gb(estimate.total)} at the peak, {_gb(available)} are free"]
    lines += [f"  {_gb(size):>8}  {name}" for name, size in estimate.parts.items() if size]
    if estimate.total <= COMFORT * available:
        return lines
    totals = [(option, estimate_memory(changed).total) for option, changed in _alternatives(setup)]
    helping = [(option, total) for option, total in totals if estimate.total - total >= WORTH_IT]
    what = "What would help:" if helping else "The base model alone takes so much when it is loaded"
    lines.append(f"  this will not fit, or only just. {what}")
    for option, total in helping:
        fits = "fits" if total <= COMFORT * available else "does not fit alone"
        lines.append(f"  {_gb(estimate.total - total):>8}  less with {option}: {_gb(total)}, {fits}")
    return lines


def _alternatives(setup: MemorySetup) -> list[tuple[str, MemorySetup]]:
    """Options that take less, with what they make of the setup."""
    found = []
    if setup.kept_share > 0.5:
        half = replace(setup, kept_share=0.5)
        found.append(("--gradient_checkpointing --gradient_checkpointing_keep=0.5", half))
    if setup.kept_share > 0:
        found.append(("--gradient_checkpointing", replace(setup, kept_share=0.0)))
    if not setup.train_text and not setup.text_is_cached:
        found.append(("--cache_text_encoder_outputs", replace(setup, text_is_cached=True)))
    if setup.batch_size > 1:
        found.append(("batch_size = 1", replace(setup, batch_size=1)))
    width, height = setup.resolution
    smaller = (max(64, width * 3 // 4 // 64 * 64), max(64, height * 3 // 4 // 64 * 64))
    found.append(
        (f"a resolution three quarters as large ({smaller[0]} x {smaller[1]})", replace(setup, resolution=smaller))
    )
    half = replace(setup, trained_values=setup.trained_values // 2, optimizer_bytes=setup.optimizer_bytes // 2)
    found.append(("half the --network_dim", half))
    return found


def _gb(size: float) -> str:
    return f"{size / GB:.1f} GB" if math.isfinite(size) else "an unknown amount"
