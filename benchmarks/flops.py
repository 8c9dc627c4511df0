"""Floating-point operations of an SDXL UNet with LoRA, from its layers' shapes alone. No MindSpore.

A multiplication with an addition counts as two operations; norms, activations and softmax are not counted.
"""

import math
import re
from dataclasses import dataclass

from library.families.sdxl.shapes import CHANNEL_MULT, POSITIONS, RES_BLOCKS, SdxlConfig, unet_shapes


@dataclass(frozen=True)
class StepFlops:
    """Operations of one training step, in its parts."""

    forward: int
    """The frozen UNet, forward."""
    backward: int
    """Gradients of activations: once the frozen layers again, twice the attention products."""
    adapters: int
    """LoRA forward and backward."""

    @property
    def useful(self) -> int:
        """What a step needs without recomputing anything."""
        return self.forward + self.backward + self.adapters


def unet_step_flops(config: SdxlConfig, batch: int, latent_height: int, latent_width: int, rank: int) -> StepFlops:
    """Operations of a step that trains a LoRA of the given rank on all 722 linear layers of the UNet."""
    linear = attention = lora = 0
    for key, shape in unet_shapes(config):
        if not key.endswith(".weight") or len(shape) < 2:
            continue
        positions = _positions(key, latent_height, latent_width)
        linear += 2 * math.prod(shape) * positions
        if _has_lora(key):
            lora += 2 * rank * (shape[0] + shape[1]) * positions
        if key.endswith(".to_q.weight"):
            keys = positions if ".attn1." in key else POSITIONS
            attention += 2 * 2 * positions * keys * shape[0]
    return StepFlops(
        forward=batch * (linear + attention), backward=batch * (linear + 2 * attention), adapters=3 * batch * lora
    )


def _positions(key: str, height: int, width: int) -> int:
    """At how many places of an image (or of the text) a layer is applied."""
    if key.startswith(("time_embed", "label_emb")) or ".emb_layers." in key:
        return 1
    if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
        return POSITIONS
    halvings = _level(key)
    return (height >> halvings) * (width >> halvings)


def _level(key: str) -> int:
    """How often the image has been halved where a layer works."""
    per_level = RES_BLOCKS + 1
    last = len(CHANNEL_MULT) - 1
    if key.startswith("middle_block"):
        return last
    match = re.match(r"(input|output)_blocks\.(\d+)\.", key)
    if match is None:
        return 0
    number = int(match[2])
    if match[1] == "input":
        return -(-number // per_level) if ".op." in key else min(number // per_level, last)
    level = last - number // per_level
    return level - 1 if key.endswith(".conv.weight") else level


def _has_lora(key: str) -> bool:
    return ".transformer_blocks." in key or key.endswith(("proj_in.weight", "proj_out.weight"))
