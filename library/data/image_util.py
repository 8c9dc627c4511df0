"""Pixels: open, turn upright, flatten on white, resize, crop, scale to [-1, 1].

Images are uint8 arrays [H, W, 3] in RGB until `to_model_input`. Sizes are (width, height) in pixels.
"""

import random
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from library.data.buckets import Placement, Size

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "AVIF", "JXL")
"""Pillow formats that are opened, where Pillow has them; any other content is refused whatever its file name."""

MAX_PIXELS = 178_956_970
"""Largest accepted image; Pillow's own limit for what it calls a decompression bomb."""

_ORIENTATION = 0x0112  # EXIF tag
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)

# resize_interpolation: (library, name of the filter there); the original's choices (inventory 2.6)
_FILTERS: MappingProxyType[str, tuple[str, str]] = MappingProxyType(
    {
        "lanczos": ("PIL", "LANCZOS"),
        "lanczos4": ("PIL", "LANCZOS"),
        "box": ("PIL", "BOX"),
        "nearest": ("cv2", "INTER_NEAREST_EXACT"),
        "bilinear": ("cv2", "INTER_LINEAR"),
        "linear": ("cv2", "INTER_LINEAR"),
        "bicubic": ("cv2", "INTER_CUBIC"),
        "cubic": ("cv2", "INTER_CUBIC"),
        "area": ("cv2", "INTER_AREA"),
    }
)
INTERPOLATIONS = tuple(_FILTERS)
"""Allowed values of resize_interpolation."""


def readable_formats() -> tuple[str, ...]:
    """Those of FORMATS that the installed Pillow can open."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextmanager
def _opened(path: Path | str) -> Iterator[Image.Image]:
    """The opened image; everything that goes wrong with it becomes a ValueError that names the file."""
    try:
        with Image.open(path, formats=readable_formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are more than the {MAX_PIXELS} allowed")
            yield image
    except _BROKEN as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = f"it is no image in one of the formats {', '.join(readable_formats())}"
        raise ValueError(f"{path}: the image cannot be read: {reason}") from error


def check_image(path: Path | str) -> Size:
    """Decode an image to its end and return its upright size (EXIF orientation applied).

    A JPEG is decoded at an eighth of its size, which reads all of its data at a third of the time. Raises ValueError
    naming the file when it is missing, truncated, of another format or too large.
    """
    with _opened(path) as image:
        width, height = image.size
        image.draft(None, (width // 8, height // 8))
        image.load()
        sideways = image.getexif().get(_ORIENTATION) in _SIDEWAYS
    return (height, width) if sideways else (width, height)


def load_rgb(path: Path | str) -> np.ndarray:
    """The image as uint8 [H, W, 3]: upright, transparency composited on white, 16-bit scaled to 8 bits.

    Raises ValueError naming the file when it cannot be read.
    """
    with _opened(path) as image:
        upright = ImageOps.exif_transpose(image)
        return np.array(_flat_rgb(upright))


def _flat_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def resize_image(image_HWC: np.ndarray, size: Size, interpolation: str | None = None) -> np.ndarray:
    """The image at `size`, with OpenCV or Pillow as the original does.

    `interpolation`: one of INTERPOLATIONS; None: "area" when no side grows, else "lanczos".
    """
    height, width = image_HWC.shape[:2]
    if (width, height) == size:
        return image_HWC
    if interpolation is None:
        interpolation = "area" if width >= size[0] and height >= size[1] else "lanczos"
    library, name = _filter(interpolation)
    if library == "PIL":
        return np.array(Image.fromarray(image_HWC).resize(size, Image.Resampling[name]))
    cv2 = import_cv2()
    resized: np.ndarray = cv2.resize(image_HWC, size, interpolation=getattr(cv2, name))
    return resized


def _filter(interpolation: str) -> tuple[str, str]:
    if interpolation not in _FILTERS:
        raise ValueError(f"resize_interpolation is {interpolation!r}; allowed are {', '.join(INTERPOLATIONS)}")
    return _FILTERS[interpolation]


def import_cv2() -> Any:
    """OpenCV, imported late. Raises ValueError saying what to install when it cannot be loaded."""
    try:
        import cv2
    except ImportError as error:
        raise ValueError(
            f"resizing images needs OpenCV, which cannot be loaded ({error}); pip install --force-reinstall "
            "opencv-python-headless, or install the system library that is named"
        ) from error
    return cv2


def crop_offset(placement: Placement, rng: random.Random | None) -> tuple[int, int]:
    """Left and top of the bucket inside the resized image: the centre, or drawn from `rng` (width first)."""
    trims = [resized - side for resized, side in zip(placement.resized, placement.bucket, strict=True)]
    assert min(trims) >= 0, f"a resized image does not cover its bucket: {placement}"
    if rng is None:
        return trims[0] // 2, trims[1] // 2
    left = rng.randint(0, trims[0]) if trims[0] else 0
    top = rng.randint(0, trims[1]) if trims[1] else 0
    return left, top


def fit_to_bucket(
    image_HWC: np.ndarray, placement: Placement, offset: tuple[int, int], interpolation: str | None = None
) -> np.ndarray:
    """Resize, then cut the bucket out at `offset` (left, top). Returns [bucket height, bucket width, 3]."""
    resized = resize_image(image_HWC, placement.resized, interpolation)
    (left, top), (width, height) = offset, placement.bucket
    return resized[top : top + height, left : left + width]


_LEVELS = (np.arange(256, dtype=np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)


def to_model_input(image_HWC: np.ndarray, *, flipped: bool = False) -> np.ndarray:
    """float32 [3, H, W] in [-1, 1] from uint8 [H, W, 3]; mirrored left to right when `flipped`."""
    if flipped:
        image_HWC = image_HWC[:, ::-1]
    return _LEVELS[np.ascontiguousarray(image_HWC.transpose(2, 0, 1))]
