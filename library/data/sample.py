"""One sample: what is drawn for it (caption, mirror, crop) and what the model gets to see."""

from dataclasses import dataclass

import numpy as np

from library.data.bucketed import PlacedImage
from library.data.buckets import Size, crop_ltrb
from library.data.captions import CaptionMoment, process_caption
from library.data.image_util import crop_offset, fit_to_bucket, load_rgb, to_model_input
from library.data.run_rng import Key, RunRng


@dataclass(frozen=True, slots=True)
class DrawnSample:
    """The random choices of one sample in one epoch."""

    caption: str
    flipped: bool
    offset: tuple[int, int]
    """Left and top of the crop inside the resized image, in pixels."""


def draw_sample(image: PlacedImage, moment: CaptionMoment, rng: RunRng, place: tuple[Key, ...]) -> DrawnSample:
    """Draw caption, mirroring and crop. `place` names the sample within the run: (epoch, data set, sample number)."""
    subset = image.subset
    return DrawnSample(
        caption=process_caption(image.caption, subset, moment, rng.python("caption", *place)),
        flipped=subset.flip_aug and rng.python("flip", *place).random() < 0.5,
        offset=crop_offset(image.placement, rng.python("crop", *place) if subset.random_crop else None),
    )


def sample_pixels(image: PlacedImage, drawn: DrawnSample) -> np.ndarray:
    """The sample's pixels: float32 [3, bucket height, bucket width] in [-1, 1].

    Raises ValueError naming the file when it cannot be read, or has changed its size since the start.
    """
    pixels = load_rgb(image.path)
    height, width = pixels.shape[:2]
    if (width, height) != image.size:
        raise ValueError(
            f"{image.path}: the image is {width} x {height} pixels now and was {image.size[0]} x {image.size[1]} when "
            "training started; start again"
        )
    fitted = fit_to_bucket(pixels, image.placement, drawn.offset, image.subset.resize_interpolation)
    return to_model_input(fitted, flipped=drawn.flipped)


def size_ids(original: Size, bucket: Size, *, flipped: bool) -> tuple[int, int, int, int, int, int]:
    """SDXL's size conditioning: original height, width, crop top, left, target height, width (inventory 3.4).

    `original` and `bucket` are (width, height) in pixels. The crop is kohya's letter-box offset; mirrored images have
    it mirrored.
    """
    left, top, right, _ = crop_ltrb(bucket, original)
    if flipped:
        left = bucket[0] - right
    return original[1], original[0], int(top), int(left), bucket[1], bucket[0]
