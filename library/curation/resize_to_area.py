"""Images made smaller so that they have at most a given number of pixels; their shape stays."""

import math

import numpy as np

from library.data.buckets import Size
from library.data.images.image_util import resize_image


def parse_resolutions(text: str) -> dict[str, int]:
    """``"512x512,384x384"`` to {name: largest number of pixels}. Raises ValueError naming every bad part."""
    areas, bad = {}, []
    for name in (part.strip() for part in text.split(",")):
        width, _, height = name.lower().partition("x")
        if width.isdecimal() and height.isdecimal() and int(width) * int(height) > 0:
            areas[name] = int(width) * int(height)
        else:
            bad.append(repr(name))
    if bad:
        raise ValueError(f"--max_resolution: {', '.join(bad)} is not WIDTHxHEIGHT in pixels; write 512x512,384x384")
    return areas


def size_within(size: Size, max_pixels: int) -> Size:
    """(width, height) with at most `max_pixels` pixels and the same shape, rounded down; never larger than `size`."""
    width, height = size
    if width * height <= max_pixels:
        return size
    factor = math.sqrt(max_pixels / (width * height))
    return max(1, int(width * factor)), max(1, int(height * factor))


def fit_within(
    image_HWC: np.ndarray, max_pixels: int, divisible_by: int = 1, interpolation: str | None = None
) -> np.ndarray:
    """The image with at most `max_pixels` pixels, its sides then cut at the centre to multiples of `divisible_by`.

    uint8 [H, W, 3] to the same. Raises ValueError when a side is shorter than `divisible_by`.
    """
    width, height = size_within((image_HWC.shape[1], image_HWC.shape[0]), max_pixels)
    resized = resize_image(image_HWC, (width, height), interpolation)
    cut_width, cut_height = width - width % divisible_by, height - height % divisible_by
    if not cut_width or not cut_height:
        raise ValueError(f"{width} x {height} pixels have a side shorter than divisible_by, {divisible_by}")
    left, top = (width - cut_width) // 2, (height - cut_height) // 2
    return resized[top : top + cut_height, left : left + cut_width]
