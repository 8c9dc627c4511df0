"""Pixels: open, turn upright, flatten on white, resize, crop, scale to [-1, 1].

Images are uint8 arrays [H, W, 3] in RGB until `to_model_input`; with a mask [H, W, 4], masks alone [H, W]. Sizes are
(width, height) in pixels.
"""

import contextlib
import functools
import importlib
import random
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from library.data.buckets import Placement, Size
from library.data.images.image_color import eight_bits, flat_rgb, profile_problem, to_srgb

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "AVIF", "JXL")
"""Pillow formats that are opened, where Pillow has them; any other content is refused whatever its file name."""

MAX_PIXELS = 178_956_970
"""Largest accepted image; Pillow's own limit for what it calls a decompression bomb."""
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # from half of that on, without the file's name

_ORIENTATION = 0x0112  # EXIF tag
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_TURNS: MappingProxyType[object, Image.Transpose] = MappingProxyType(
    {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
)
"""EXIF orientation: what turns the stored image upright."""
_BROKEN = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError),
    *(RuntimeError, LookupError, TypeError, OverflowError, MemoryError),
)
"""What Pillow's readers raise on damaged files."""

# resize_interpolation: (library, name of the filter there); the choices of kohya's resize_image
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


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Those of FORMATS that the installed Pillow can open; pillow-jxl-plugin adds JXL."""
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_jxl")  # registers itself with Pillow
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextlib.contextmanager
def open_image(path: Path | str) -> Iterator[Image.Image]:
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


def check_image(path: Path | str, notes: list[str] | None = None) -> Size:
    """Decode an image to its end and return its upright size (EXIF orientation applied).

    A JPEG is decoded at an eighth of its size, which reads all of its data at a third of the time. A colour profile
    that is of no use is told in `notes`. Raises ValueError naming the file when it is missing, truncated, of another
    format or too large.
    """
    with open_image(path) as image:
        width, height = image.size
        image.draft(None, (width // 8, height // 8))
        image.load()
        problem = profile_problem(image)
        if problem is not None and notes is not None:
            notes.append(f"{path}: its colour profile is not used, since {problem}; its colours are taken as sRGB")
        return (height, width) if orientation_of(image) in _SIDEWAYS else (width, height)


def read_image(path: Path | str, *, alpha: bool = False) -> Image.Image:
    """The image in sRGB with 8 bits, upright, the first of several frames; RGB with transparency composited on white.

    With `alpha` it is RGBA: the colours as they are below transparency, and the alpha channel (255 where there is
    none). Raises ValueError naming the file when it cannot be read.
    """
    with open_image(path) as opened:
        image = upright(opened)
        return to_srgb(image).convert("RGBA") if alpha else flat_rgb(image)


def read_mask(path: Path | str) -> Image.Image:
    """A mask as an image of mode L: the red channel, as in the original; 0 where the mask is transparent.

    Raises ValueError naming the file when it cannot be read.
    """
    with open_image(path) as opened:
        image = eight_bits(upright(opened))
        if not image.has_transparency_data:
            return image.convert("RGB").getchannel("R")
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer).getchannel("R")


def load_rgb(path: Path | str) -> np.ndarray:
    """Pixels of `read_image` as uint8 [H, W, 3]."""
    return to_array(read_image(path))


def to_array(image: Image.Image) -> np.ndarray:
    """Pixels as uint8 [H, W] (mode L), [H, W, 3] (RGB) or [H, W, 4] (RGBA)."""
    if image.mode != "RGB":
        return np.asarray(image)
    planes = (np.frombuffer(image.tobytes("raw", band), np.uint8) for band in "RGB")  # half the time of asarray
    array: np.ndarray = import_cv2().merge([plane.reshape(image.height, image.width) for plane in planes])
    return array


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or the EXIF data cannot be read."""
    try:
        found = image.getexif().get(_ORIENTATION)
    except _BROKEN:
        return 1
    return found if isinstance(found, int) and found in _TURNS else 1


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says."""
    turn = _TURNS.get(orientation_of(image))
    if turn is None:
        image.load()
        return image
    turned = image.transpose(turn)
    turned.info = image.info
    return turned


def resize_image(image: Image.Image | np.ndarray, size: Size, interpolation: str | None = None) -> np.ndarray:
    """The image at `size` as uint8 [H, W, C], or [H, W] of one channel, by OpenCV or Pillow as the original does it.

    `interpolation`: one of INTERPOLATIONS; None: "area" when no side grows, else "lanczos".
    """
    width, height = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
    if interpolation is None:
        interpolation = "area" if width >= size[0] and height >= size[1] else "lanczos"
    library, name = _filter(interpolation)
    if library == "PIL" and (width, height) != size:
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        return to_array(image.resize(size, Image.Resampling[name]))
    array = to_array(image) if isinstance(image, Image.Image) else image
    if (width, height) == size:
        return array
    cv2 = import_cv2()
    resized: np.ndarray = cv2.resize(array, size, interpolation=getattr(cv2, name))
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
    image: Image.Image | np.ndarray, placement: Placement, offset: tuple[int, int], interpolation: str | None = None
) -> np.ndarray:
    """Resize, then cut the bucket out at `offset` (left, top): uint8 [bucket height, bucket width, C], or without C."""
    resized = resize_image(image, placement.resized, interpolation)
    (left, top), (width, height) = offset, placement.bucket
    return resized[top : top + height, left : left + width]


_LEVELS = (np.arange(256, dtype=np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)


def to_model_input(image_HWC: np.ndarray, *, flipped: bool = False) -> np.ndarray:
    """float32 [3, H, W] in [-1, 1] from uint8 [H, W, 3]; mirrored left to right when `flipped`."""
    if flipped:
        image_HWC = image_HWC[:, ::-1]
    return _LEVELS[np.ascontiguousarray(image_HWC.transpose(2, 0, 1))]


def to_weights(mask_HW: np.ndarray, *, flipped: bool = False) -> np.ndarray:
    """float32 [H, W] in [0, 1] from uint8 [H, W]; mirrored left to right when `flipped`."""
    return (mask_HW[:, ::-1] if flipped else mask_HW).astype(np.float32) / np.float32(255)
