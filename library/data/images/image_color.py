"""Colours of an opened image: its profile, its bit depth, its transparency. The result is 8-bit sRGB.

A colour profile says what the stored numbers mean; phones and cameras use wider ones than sRGB, whose pictures look
pale when their numbers are taken as they are. A profile that is sRGB in all but name leaves every pixel as stored.
"""

import functools
import io
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageCms

_SPACES = MappingProxyType({"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"})
"""Mode that a profile is applied to: the colour space that the profile then has to be of."""
_PLAIN_MODES = MappingProxyType({"1": "L", "L": "L", "LA": "L", "CMYK": "CMYK"})
"""Mode as opened: the mode without transparency and palette; of all others it is RGB."""
_SAME = 1
"""Largest difference, of 255 levels, between colours that count as the same."""


def flat_rgb(image: Image.Image) -> Image.Image:
    """The image as RGB in sRGB, transparency composited on white."""
    rgb = to_srgb(image)
    if rgb.mode == "RGB":
        return rgb
    return Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgb).convert("RGB")


def to_srgb(image: Image.Image) -> Image.Image:
    """The image in sRGB with 8 bits: RGBA where it can be transparent, else RGB.

    Without a profile, or with one that cannot be used (see `profile_problem`), its colours are taken as sRGB.
    """
    image = eight_bits(image)
    mode = _PLAIN_MODES.get(image.mode, "RGB")
    try:
        transform = _transform(image.info.get("icc_profile") or b"", mode)
    except ValueError:
        transform = None
    if transform is None:
        wanted = "RGBA" if image.has_transparency_data else "RGB"
        return image if image.mode == wanted else image.convert(wanted)
    rgb = transform.apply(image.convert(mode))
    if image.has_transparency_data:
        rgb.putalpha(image.convert("RGBA").getchannel("A"))
    return rgb


def profile_problem(image: Image.Image) -> str | None:
    """Why the image's colour profile is of no use; None when it is, and when there is none."""
    if "icc_profile" in image.info and not image.info["icc_profile"]:
        return "it cannot be unpacked"
    try:
        _transform(image.info.get("icc_profile", b""), _PLAIN_MODES.get(image.mode, "RGB"))
    except ValueError as error:
        return str(error)
    return None


def eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 bits; all others as they are."""
    if not image.mode.startswith("I"):
        return image
    wide = np.asarray(image).astype(np.int64).clip(0, 65535)
    grey = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    grey.info = {key: value for key, value in image.info.items() if key == "icc_profile"}
    return grey


@functools.lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile's colours in `mode` to sRGB; None where they are sRGB already.

    Raises ValueError when the profile is broken, or is not one for images of this mode.
    """
    if not profile:
        return None
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = opened.profile.xcolor_space.strip()
        if space != _SPACES[mode]:
            raise ValueError(f"it is for {space} and the image is {_SPACES[mode]}")
        # Without lcms's cache of the last pixel one transform serves several threads.
        transform = ImageCms.buildTransform(
            opened, ImageCms.createProfile("sRGB"), mode, "RGB", flags=ImageCms.Flags.NOCACHE
        )
    except (ImageCms.PyCMSError, OSError, TypeError) as error:
        raise ValueError(f"it is broken ({error})") from error
    assert isinstance(transform, ImageCms.ImageCmsTransform)
    return None if mode != "CMYK" and _keeps_colors(transform, mode) else transform


def _keeps_colors(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a transform leaves an even choice of colours (of greys for mode L) as they are."""
    levels = np.arange(0, 256, 17 if mode == "RGB" else 1, dtype=np.uint8)
    channels = np.meshgrid(levels, levels, levels) if mode == "RGB" else [levels] * 3
    colors = np.stack(channels, -1).reshape(1, -1, 3)
    given = Image.fromarray(colors) if mode == "RGB" else Image.fromarray(levels[None])
    found = np.asarray(transform.apply(given))
    return int(np.abs(found.astype(np.int16) - colors).max()) <= _SAME
