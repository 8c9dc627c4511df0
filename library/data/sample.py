"""One sample: what is drawn for it (caption, mirror, crop) and what the model gets to see."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from library.data.bucketed import PlacedImage
from library.data.buckets import Placement, Size, crop_ltrb
from library.data.images.augment import ColorChange, change_colors, draw_color_change, draw_face_crop
from library.data.images.image_util import crop_offset, fit_to_bucket, read_image, read_mask, to_model_input, to_weights
from library.data.run_rng import Key, RunRng
from library.data.text.captions import CaptionMoment, process_caption


@dataclass(frozen=True, slots=True)
class DrawnSample:
    """The random choices of one sample in one epoch."""

    caption: str
    flipped: bool
    offset: tuple[int, int]
    """Left and top of the crop inside the resized image, in pixels."""
    placement: Placement | None = None
    """Where the image goes when it is cropped around a face; None is the image's own place."""
    color: ColorChange | None = None


@dataclass(frozen=True, slots=True)
class SamplePixels:
    """What one sample shows. H and W: height and width of its bucket in pixels."""

    image_CHW: np.ndarray
    """float32 [3, H, W] in [-1, 1]."""
    mask_HW: np.ndarray | None
    """float32 in [0, 1]: weight of each pixel in the loss; None when the whole image counts."""


def draw_sample(image: PlacedImage, moment: CaptionMoment, rng: RunRng, place: tuple[Key, ...]) -> DrawnSample:
    """Draw caption, mirroring, crop and colours. `place` names the sample: (epoch, data set, sample number)."""
    subset = image.subset
    placement, offset = _draw_crop(image, rng, place)
    return DrawnSample(
        caption=process_caption(image.caption, subset, moment, rng.python("caption", *place)),
        flipped=subset.flip_aug and rng.python("flip", *place).random() < 0.5,
        offset=offset,
        placement=placement,
        color=draw_color_change(rng.python("color", *place)) if subset.color_aug else None,
    )


def _draw_crop(image: PlacedImage, rng: RunRng, place: tuple[Key, ...]) -> tuple[Placement | None, tuple[int, int]]:
    drawn = rng.python("crop", *place)
    if image.face is not None:
        return draw_face_crop(image.size, image.placement.bucket, image.face, image.subset, drawn)
    return None, crop_offset(image.placement, drawn if image.subset.random_crop else None)


def sample_pixels(image: PlacedImage, drawn: DrawnSample) -> SamplePixels:
    """The sample's pixels and its mask, cut and mirrored alike.

    Raises ValueError naming the file when it cannot be read, or has changed its size since the start.
    """
    stored = read_image(image.path, alpha=image.mask_in_alpha)
    if stored.size != image.size:
        raise ValueError(
            f"{image.path}: the image is {stored.width} x {stored.height} pixels now and was {image.size[0]} x "
            f"{image.size[1]} when training started; start again"
        )
    fitted = _fitted(stored, image, drawn)
    pixels = fitted[..., :3]
    if drawn.color is not None:
        pixels = change_colors(np.ascontiguousarray(pixels), drawn.color)
    mask = to_weights(fitted[..., 3], flipped=drawn.flipped) if image.mask_in_alpha else mask_of_file(image, drawn)
    return SamplePixels(to_model_input(pixels, flipped=drawn.flipped), mask)


def mask_of_file(image: PlacedImage, drawn: DrawnSample) -> np.ndarray | None:
    """The sample's mask where it is a file of its own: float32 [H, W] in [0, 1]. Raises ValueError naming the file."""
    if image.mask is None:
        return None
    # In three channels, as in the original: with one, OpenCV's bicubic filter rounds otherwise on some processors.
    mask_HWC = _fitted(read_mask(image.mask).convert("RGB"), image, drawn)
    return to_weights(mask_HWC[..., 0], flipped=drawn.flipped)


def _fitted(stored: Image.Image, image: PlacedImage, drawn: DrawnSample) -> np.ndarray:
    return fit_to_bucket(stored, drawn.placement or image.placement, drawn.offset, image.subset.resize_interpolation)


def size_ids(original: Size, bucket: Size, *, flipped: bool) -> tuple[int, int, int, int, int, int]:
    """The size conditioning: original height, width, crop top, left, target height, width.

    `original` and `bucket` are (width, height) in pixels. The crop is kohya's letter-box offset (`buckets.crop_ltrb`);
    mirrored images have it mirrored.
    """
    left, top, right, _ = crop_ltrb(bucket, original)
    if flipped:
        left = bucket[0] - right
    return original[1], original[0], int(top), int(left), bucket[1], bucket[0]
