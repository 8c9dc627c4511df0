"""Aspect-ratio buckets: which sizes there are, which one an image goes to, and how it gets there.

The numbers are kohya's, floating-point order included: the same image lands in the same bucket.
All sizes are (width, height) in pixels.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Size = tuple[int, int]
Element = TypeVar("Element")


@dataclass(frozen=True)
class Placement:
    """Where an image goes: it is resized to `resized`, then cropped to `bucket`."""

    bucket: Size
    resized: Size
    ar_error: float
    """Aspect ratio (width / height) of the bucket minus that of the image."""


def make_bucket_resolutions(
    max_reso: Size, min_size: int = 256, max_size: int = 1024, divisible: int = 64
) -> list[Size]:
    """All bucket sizes of an area, sorted. Source: kohya's function of the same name.

    `max_reso`: the size whose area no bucket should exceed; sides lie in [min_size, max_size] on a grid of
    `divisible` pixels (the square bucket may lie outside that range).
    """
    area = max_reso[0] * max_reso[1]
    side = int(math.sqrt(area) // divisible) * divisible
    sizes = {(side, side)}
    for width in range(min_size, max_size + 1, divisible):
        height = min(max_size, int((area // width) // divisible) * divisible)
        if height >= min_size:
            sizes |= {(width, height), (height, width)}
    return sorted(sizes)


def select_bucket(image: Size, predefined: Sequence[Size], aspect_ratios: np.ndarray | None = None) -> Placement:
    """The predefined bucket nearest in aspect ratio; the image is scaled to cover it.

    `aspect_ratios`: width / height of `predefined` as float64, if the caller has it at hand.
    """
    width, height = image
    aspect = width / height
    if image in predefined:
        bucket = image
    else:
        if aspect_ratios is None:
            aspect_ratios = np.array([w / h for w, h in predefined])
        bucket = predefined[int(np.abs(aspect_ratios - aspect).argmin())]
    covers_by_height = aspect > bucket[0] / bucket[1]
    scale = bucket[1] / height if covers_by_height else bucket[0] / width
    resized = (int(width * scale + 0.5), int(height * scale + 0.5))
    return Placement(bucket, resized, bucket[0] / bucket[1] - aspect)


def _round_to_steps(side: float, steps: int) -> int:
    rounded = int(side + 0.5)
    return rounded - rounded % steps


def _shrink_to_area(image: Size, max_area: int, steps: int) -> Size:
    """The size of at most about `max_area` pixels with one side on the grid and the better kept aspect ratio."""
    aspect = image[0] / image[1]
    ideal_width = math.sqrt(max_area * aspect)
    ideal_height = max_area / ideal_width

    width = _round_to_steps(ideal_width, steps)
    aspect_by_width = width / _round_to_steps(width / aspect, steps)
    height = _round_to_steps(ideal_height, steps)
    aspect_by_height = _round_to_steps(height * aspect, steps) / height

    if abs(aspect_by_width - aspect) < abs(aspect_by_height - aspect):
        return width, int(width / aspect + 0.5)
    return int(height * aspect + 0.5), height


def select_bucket_no_upscale(image: Size, max_area: int, steps: int) -> Placement:
    """The bucket made for one image that is never enlarged.

    An image above `max_area` pixels is shrunk; the bucket is the result rounded down to multiples of `steps`.
    A width below one step gives a bucket of width 0, as in the original; callers have to refuse it.
    Raises ValueError where the height falls below one step, since such a bucket has no aspect ratio.
    """
    try:
        resized = _shrink_to_area(image, max_area, steps) if image[0] * image[1] > max_area else image
        bucket = (resized[0] - resized[0] % steps, resized[1] - resized[1] % steps)
        return Placement(bucket, resized, bucket[0] / bucket[1] - image[0] / image[1])
    except ZeroDivisionError:
        raise ValueError(
            f"an image of {image[0]} x {image[1]} pixels has no bucket with bucket_no_upscale: one of its sides is "
            f"under {steps} pixels at {max_area} pixels of area"
        ) from None


def crop_ltrb(bucket: Size, image: Size) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the image drawn whole inside the bucket, for the size conditioning.

    This is the letter-box offset and not the crop that is cut; kohya's get_crop_ltrb has it so, and LoRAs in the wild
    are trained with it.
    """
    image_aspect = image[0] / image[1]
    width: float = bucket[0]
    height: float = bucket[1]
    if bucket[0] / bucket[1] > image_aspect:
        width = bucket[1] * image_aspect
    else:
        height = bucket[0] / image_aspect
    left = (bucket[0] - width) // 2
    top = (bucket[1] - height) // 2
    return left, top, left + width, top + height


class BucketSelector:
    """The bucket rule of one data set: from the size of an image to its placement."""

    def __init__(
        self, resolution: Size, *, enabled: bool, min_side: int, max_side: int, steps: int, no_upscale: bool
    ) -> None:
        """`resolution`: (width, height) whose area buckets aim at, or the only bucket when not `enabled`.

        `min_side`, `max_side`: range of the sides; already multiples of `steps` (see `round_limits`).
        """
        self._steps = steps
        self._max_area = resolution[0] * resolution[1]
        self._no_upscale = enabled and no_upscale
        self.predefined = make_bucket_resolutions(resolution, min_side, max_side, steps) if enabled else [resolution]
        self._aspect_ratios = np.array([w / h for w, h in self.predefined])
        self._known: dict[Size, Placement] = {}

    def select(self, image: Size) -> Placement:
        """Placement of an image of this size. Raises ValueError when a side of its bucket would be zero."""
        if image not in self._known:
            self._known[image] = self._select(image)
        return self._known[image]

    def _select(self, image: Size) -> Placement:
        if not self._no_upscale:
            return select_bucket(image, self.predefined, self._aspect_ratios)
        placement = select_bucket_no_upscale(image, self._max_area, self._steps)
        if 0 in placement.bucket:
            raise ValueError(
                f"an image of {image[0]} x {image[1]} pixels is smaller than one bucket step ({self._steps} pixels) "
                "and bucket_no_upscale forbids enlarging it"
            )
        return placement


def round_limits(min_side: int, max_side: int, steps: int) -> Size:
    """`min_bucket_reso` rounded down and `max_bucket_reso` rounded up to multiples of `bucket_reso_steps`."""
    return min_side - min_side % steps, -(-max_side // steps) * steps


def batch_list(bucket_sizes: Sequence[int], batch_size: int) -> list[tuple[int, int]]:
    """All batches as (bucket, number within the bucket). None crosses buckets, the last of a bucket may be short."""
    return [(bucket, k) for bucket, size in enumerate(bucket_sizes) for k in range(-(-size // batch_size))]


def shuffle_as_kohya(
    batches: Sequence[tuple[int, int]], buckets: Sequence[Sequence[Element]], rng: random.Random
) -> tuple[list[tuple[int, int]], list[list[Element]]]:
    """One epoch shuffle in the original's order of draws: the batch list, then each bucket.

    Source: kohya's BaseDataset.shuffle_buckets.

    The original applies it to the result of the epoch before and seeds `rng` with seed + epoch. Our own epochs are
    drawn afresh instead (`dataset.TrainDataset.epoch_order`); this is for comparison with its recorded orders.
    """
    shuffled = list(batches)
    rng.shuffle(shuffled)
    contents = [list(bucket) for bucket in buckets]
    for content in contents:
        rng.shuffle(content)
    return shuffled, contents
