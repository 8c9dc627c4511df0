"""Variation of pixels: colours (color_aug) and crops around a face (face_crop_aug_range), as the original draws them.

What is drawn is kept apart from what is done with it, so that a sample can be shown, or made again, without drawing.
Sizes are (width, height) in pixels.
"""

import math
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from library.data.buckets import Placement, Size
from library.data.images.image_util import import_cv2
from library.settings.config_util import SubsetConfig

# the numbers of kohya's AugHelper and crop_target
_COLOR_RATE = 0.33
_HUE_LIMIT = 8.0  # of OpenCV's 180 steps
_GAMMA_RANGE = (0.95, 1.05)
_FACE_NUMBERS = 4
_LEAST_FACE_TO_SHIFT = 40  # pixels


@dataclass(frozen=True, slots=True)
class ColorChange:
    """One change of colours; exactly one of the two is set."""

    hue: float | None = None
    """Shift in OpenCV's steps of 2 degrees, 0 to 180."""
    gamma: float | None = None
    """Exponent on the levels 0 to 255."""


def draw_color_change(rng: random.Random) -> ColorChange | None:
    """A change for about a third of the samples: half of them in hue, half in brightness."""
    if rng.random() > _COLOR_RATE:
        return None
    if rng.random() > 0.5:
        shift = rng.uniform(-_HUE_LIMIT, _HUE_LIMIT)
        return ColorChange(hue=shift + 180 if shift < 0 else shift)
    return ColorChange(gamma=rng.uniform(*_GAMMA_RANGE))


def change_colors(image_HWC: np.ndarray, change: ColorChange) -> np.ndarray:
    """The uint8 image [H, W, 3] with changed colours.

    Like the original it takes RGB for BGR while it turns the hue, and the power of the levels themselves, not of their
    share of 255, so that a gamma above 1 brightens.
    """
    if change.gamma is not None:
        levels = np.arange(256, dtype=np.uint8) ** change.gamma
        return np.clip(levels, 0, 255).astype(np.uint8)[image_HWC]
    assert change.hue is not None
    cv2 = import_cv2()
    hsv = cv2.cvtColor(image_HWC, cv2.COLOR_BGR2HSV)
    hsv[:, :, 0] = ((np.arange(256) + change.hue) % 180).astype(np.uint8)[hsv[:, :, 0]]
    changed: np.ndarray = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    return changed


@dataclass(frozen=True, slots=True)
class Face:
    """Where a face is in its image, in pixels."""

    center: tuple[int, int]
    """From the left and from the top."""
    side: int
    """The longer side of the box around it."""


def face_in_name(path: Path) -> Face | None:
    """The face that a file name such as `anna_512_300_120_140.png` tells: centre x, y, width, height.

    None when the name does not end in four whole numbers after another word, or the box is empty.
    """
    words = path.stem.split("_")
    numbers = words[-_FACE_NUMBERS:]
    if len(words) <= _FACE_NUMBERS or not all(number.isdecimal() for number in numbers):
        return None
    x, y, width, height = map(int, numbers)
    return Face((x, y), max(width, height)) if x > 0 and max(width, height) > 0 else None


def stem_without_face(path: Path) -> str:
    """The file name without its ending and the four numbers of a face: `anna` of `anna_512_300_120_140.png`."""
    return "_".join(path.stem.split("_")[:-_FACE_NUMBERS])


def draw_face_crop(
    image: Size, target: Size, face: Face, subset: SubsetConfig, rng: random.Random
) -> tuple[Placement, tuple[int, int]]:
    """How to resize an image of at least the target's size, and where to cut, so that the face is in the crop.

    The crop's shorter side is `face_crop_aug_range` times the face, as far as the image is large enough. With
    random_crop the crop may lie anywhere, most often with the face near its centre. Returns the placement and the
    crop's left and top in the resized image. Draws in the original's order: scale, then rows, then columns.
    """
    if image == target:
        return Placement(target, target, 0.0), (0, 0)
    scale = _face_scale(image, target, face, subset, rng)
    resized = (int(image[0] * scale + 0.5), int(image[1] * scale + 0.5))
    center = [int(coordinate * scale + 0.5) for coordinate in face.center]
    offset = [0, 0]
    for axis in (1, 0):
        start = center[axis] - target[axis] // 2 + _shift(resized[axis], center[axis], target, face, subset, rng)
        offset[axis] = max(0, min(start, resized[axis] - target[axis]))
    return Placement(target, resized, target[0] / target[1] - image[0] / image[1]), (offset[0], offset[1])


def _face_scale(image: Size, target: Size, face: Face, subset: SubsetConfig, rng: random.Random) -> float:
    assert subset.face_crop_aug_range is not None
    low, high = subset.face_crop_aug_range
    side = min(target)
    covering = max(target[1] / image[1], target[0] / image[0])
    least = min(1.0, max(covering, _divided(side, face.side * high)))
    most = min(1.0, max(least, _divided(side, face.side * low)))
    return least if least >= most else rng.uniform(least, most)


def _divided(side: int, crop: float) -> float:
    return side / crop if crop else math.inf


def _shift(length: int, center: int, target: Size, face: Face, subset: SubsetConfig, rng: random.Random) -> int:
    """How far the crop lies off the face, in pixels of the resized image."""
    if subset.random_crop:
        reach = max(length - center, center)
        return rng.randint(0, reach) + rng.randint(0, reach) - reach
    assert subset.face_crop_aug_range is not None
    varies = subset.face_crop_aug_range[0] != subset.face_crop_aug_range[1]
    if varies and face.side > min(target) // 10 and face.side >= _LEAST_FACE_TO_SHIFT:
        return rng.randint(-face.side // 20, face.side // 20)
    return 0
