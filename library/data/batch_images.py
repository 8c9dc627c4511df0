"""What a batch shows of its images: their pixels, or their latents from a cache; and their masks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from library.data.batch import Posterior
from library.data.bucketed import PlacedImage
from library.data.cache.latent_cache import LatentCache
from library.data.sample import DrawnSample, mask_of_file, sample_pixels


@dataclass(frozen=True)
class BatchImages:
    """The fields of a Batch that come from its images."""

    images_BCHW: np.ndarray | None
    latents: Posterior | None
    masks_BHW: np.ndarray | None


def decoded(images: Sequence[PlacedImage], drawn: Sequence[DrawnSample]) -> BatchImages:
    """Pixels and masks from the files. Raises ValueError naming one that cannot be read."""
    samples = [sample_pixels(image, choice) for image, choice in zip(images, drawn, strict=True)]
    masks = _stacked([sample.mask_HW for sample in samples], images)
    return BatchImages(np.stack([sample.image_CHW for sample in samples]), None, masks)


def cached(cache: LatentCache, images: Sequence[PlacedImage], drawn: Sequence[DrawnSample]) -> BatchImages:
    """Latents from the cache, and the masks: those of transparency from it too, others from their files.

    Raises ValueError naming a file that cannot be read.
    """
    found = [cache.sample(image, choice.flipped) for image, choice in zip(images, drawn, strict=True)]
    latents = Posterior(np.stack([one.mean for one, _ in found]), np.stack([one.std for one, _ in found]))
    masks = [
        mask_of_file(image, choice) if mask is None else mask
        for (_, mask), image, choice in zip(found, images, drawn, strict=True)
    ]
    return BatchImages(None, latents, _stacked(masks, images))


def _stacked(masks_HW: Sequence[np.ndarray | None], images: Sequence[PlacedImage]) -> np.ndarray | None:
    """float32 [B, H, W], ones for images without a mask; None when none has one."""
    if all(mask is None for mask in masks_HW):
        return None
    width, height = images[0].placement.bucket
    ones = np.ones((height, width), np.float32)
    return np.stack([ones if mask is None else mask for mask in masks_HW])
