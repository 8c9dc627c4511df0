"""What the data floor hands to the training loop."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Posterior:
    """What the VAE says that the latents of images may be: normal distributions, independent of each other.

    Of one image [4, H, W] or several [B, 4, H, W]; not scaled.
    """

    mean: np.ndarray
    """float32."""
    std: np.ndarray
    """float16, with or without a cache: half the space in it, and both train the same."""

    def draw(self, eps: np.ndarray) -> np.ndarray:
        """float32 latents drawn with the given standard normal noise: mean + std * eps."""
        return (self.mean + self.std.astype(np.float32) * eps).astype(np.float32)


TextArrays = Mapping[str, np.ndarray]
"""What the text encoders give, by the names that the model's family has for it: float32 or float16, for one caption or,
with an axis more in front, for several."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch of equally sized samples, in NumPy.

    Axes: B samples, C channels, H and W height and width.
    """

    images_BCHW: np.ndarray | None
    """RGB pixels as float32 in [-1, 1]; None when the latents are given instead."""

    latents: Posterior | None
    """From a cache, 4 channels at an eighth of the pixel size; None when the images are given instead."""

    token_ids: tuple[np.ndarray, ...]
    """Per text encoder one int64 array [B, chunks, 77]."""

    token_weights_BNT: np.ndarray | None
    """float32, shaped like each of `token_ids`: factors on the text encoders' hidden states; None when all are 1."""

    text: TextArrays | None
    """From a cache; None when the tokens are to be encoded."""

    size_ids_B6: np.ndarray
    """float32, pixels: original height, width, crop top, left, target height, width."""

    loss_weights_B: np.ndarray
    """float32: prior_loss_weight for regularisation images, else 1."""

    masks_BHW: np.ndarray | None
    """float32 in [0, 1] at the images' pixel size: weight of each pixel in the loss; None when all are 1."""

    captions: tuple[str, ...]
    """The captions that were tokenized, after dropout, shuffle and wildcards."""

    keys: tuple[str, ...]
    """Image paths, one per sample."""

    index: int
    """Number of this batch in the whole run, from 0."""
