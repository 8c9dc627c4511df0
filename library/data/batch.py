"""What the data floor hands to the training loop."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch of equally sized samples, in NumPy.

    Axes: B samples, C channels, H and W height and width.
    """

    images_BCHW: np.ndarray | None
    """RGB pixels as float32 in [-1, 1]; None when the latents are given instead."""

    latents_BCHW: np.ndarray | None
    """Scaled latents as float32 (4 channels, an eighth of the pixel size); None when the images are given instead."""

    token_ids: tuple[np.ndarray, ...]
    """Per text encoder one int64 array [B, chunks, 77]."""

    token_weights_BNT: np.ndarray | None
    """float32, shaped like each of `token_ids`: factors on the text encoders' hidden states; None when all are 1."""

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
