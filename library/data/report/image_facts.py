"""What can be told from an image's file besides its size, for the list of suspicious images."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from library.data.images.image_color import flat_rgb
from library.data.images.image_util import open_image, orientation_of, upright

SIDE = 10
"""Pixels of the side of the thumbnails by which images are compared."""

_DRAFT = 8 * SIDE  # JPEGs are decoded no larger than needed


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """One image file."""

    digest: bytes
    """BLAKE2b of the file, 16 bytes."""
    orientation: int
    """EXIF orientation, 1 to 8; 1 is upright."""
    transparent: bool
    """Some pixel is not opaque."""
    thumbnail: np.ndarray
    """uint8 [SIDE, SIDE, 3]: the upright image on white, squeezed into a square."""


def image_facts(path: Path) -> ImageFacts:
    """Read one image. Raises ValueError that names the file when it cannot be read."""
    with open_image(path) as image:
        orientation = orientation_of(image)
        image.draft("RGB", (_DRAFT, _DRAFT))
        small = upright(image)
        transparent = small.has_transparency_data and bool((np.asarray(small.convert("RGBA"))[..., 3] < 255).any())
        thumbnail = flat_rgb(small).resize((SIDE, SIDE), Image.Resampling.BOX)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    return ImageFacts(digest, orientation, transparent, np.asarray(thumbnail))


# Two images are near-duplicates when their thumbnails correlate at least this much and their mean colours differ by at
# most so many of 255 levels. The same picture at another size or quality reaches 0.995; flat images, whose contrast is
# below FLAT levels, say too little to be compared.
CORRELATION = 0.99
COLOUR_LEVELS = 10
FLAT = 4.0
_ROWS = 1024  # compared at once with all later ones


def near_duplicates(thumbnails: Sequence[np.ndarray]) -> list[list[int]]:
    """Groups of images that look the same, as indices; each image is in at most one group."""
    parents = list(range(len(thumbnails)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    for first, second in _alike(thumbnails):
        parents[max(root(first), root(second))] = min(root(first), root(second))
    groups: dict[int, list[int]] = {}
    for index in range(len(thumbnails)):
        groups.setdefault(root(index), []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def _alike(thumbnails: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """Pairs of indices whose thumbnails are alike."""
    if not thumbnails:
        return []
    pixels = np.stack(thumbnails).astype(np.float32)  # [N, SIDE, SIDE, 3]
    colours = pixels.mean(axis=(1, 2))
    centred = (pixels - colours[:, None, None]).reshape(len(pixels), -1)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    usable = np.flatnonzero(lengths[:, 0] > FLAT * centred.shape[1] ** 0.5)
    unit = centred[usable] / lengths[usable]
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(usable), _ROWS):
        near = unit[start : start + _ROWS] @ unit[start:].T >= CORRELATION
        rows, columns = np.nonzero(np.triu(near, 1))
        first, second = usable[start + rows], usable[start + columns]
        same_colour = (np.abs(colours[first] - colours[second]) <= COLOUR_LEVELS).all(axis=1)
        pairs += zip(first[same_colour].tolist(), second[same_colour].tolist(), strict=True)
    return pairs
