"""What a network may adapt: one layer of a base model, described by its key in the checkpoint file."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LayerTarget:
    """A linear or convolutional layer that an adapter can be put beside."""

    part: str
    """Which model it belongs to: ``unet``, ``te1`` or ``te2``."""
    key: str
    """Key of the layer in that model, without ``.weight``: ``middle_block.1.proj_in``"""
    name: str
    """Start of the adapter's keys in kohya's files: ``lora_unet_middle_block_1_proj_in``"""
    shape: tuple[int, ...]
    """Shape of its weight: (out, in) or (out, in, k, k)."""
    stride: int = 1
    padding: int = 0
    stage: Literal["", "down", "mid", "up"] = ""
    """Stage of the UNet, for options by block; "" in text encoders."""
    stage_index: int = 0
    """Number of its block within the stage, from 0."""
    block: int = 0
    """Number of that block in all of the UNet, as kohya counts: 0 are the embeddings."""
    extended: bool = False
    """Belongs to the layers that are adapted only when convolutions are (res blocks, up- and downsampling)."""

    @property
    def is_conv(self) -> bool:
        """Whether the layer is a convolution."""
        return len(self.shape) == 4
