"""Colour changes and crops around a face, against the original's rules written down once more."""

import random
from pathlib import Path

import cv2
import numpy as np
import pytest

from library.data.images.augment import (
    ColorChange,
    Face,
    change_colors,
    draw_color_change,
    draw_face_crop,
    face_in_name,
    stem_without_face,
)
from library.settings.config_util import SubsetConfig

NOISE_HWC = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


# --- colours ----------------------------------------------------------------------------------------------------------
def expected_colors(image: np.ndarray, rng: random.Random) -> np.ndarray:
    """The rule of kohya's AugHelper in one piece, drawing as it goes."""
    if rng.random() <= 0.33:
        if rng.random() > 0.5:
            hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV).astype(np.float64)
            hsv[..., 0] = (hsv[..., 0] + rng.uniform(-8, 8)) % 180
            return cv2.cvtColor(np.floor(hsv).astype(np.uint8), cv2.COLOR_HSV2BGR)
        return np.floor(np.minimum(image.astype(np.float64) ** rng.uniform(0.95, 1.05), 255)).astype(np.uint8)
    return image


def test_colours_change_as_in_the_original():
    kinds = set()
    for seed in range(120):
        change = draw_color_change(random.Random(seed))
        found = NOISE_HWC if change is None else change_colors(NOISE_HWC, change)
        np.testing.assert_array_equal(found, expected_colors(NOISE_HWC, random.Random(seed)))
        kinds.add(None if change is None else change.hue is None)
    assert kinds == {None, True, False}


def test_a_third_of_the_samples_change_colour():
    rng = random.Random(1)
    changes = [draw_color_change(rng) for _ in range(6000)]
    hues = [change.hue for change in changes if change and change.hue is not None]
    gammas = [change.gamma for change in changes if change and change.gamma is not None]
    assert abs((len(hues) + len(gammas)) / 6000 - 0.33) < 0.025  # four standard deviations
    assert abs(len(hues) / (len(hues) + len(gammas)) - 0.5) < 0.05
    assert all(0 <= hue <= 8 or 172 <= hue <= 180 for hue in hues)
    assert all(0.95 <= gamma <= 1.05 for gamma in gammas)


def test_grey_has_no_hue_to_change():
    grey = NOISE_HWC[..., :1].repeat(3, -1)
    np.testing.assert_array_equal(change_colors(grey, ColorChange(hue=8.0)), grey)


# --- faces ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "face", "stem"),
    [
        ("anna_512_300_120_140.png", Face((512, 300), 140), "anna"),
        ("my_cat_0010_20_30_5.jpg", Face((10, 20), 30), "my_cat"),
        ("1_2_3_4.png", None, None),
        ("a_1_2_3_x.png", None, None),
        ("a_1_2_-3_4.png", None, None),
        ("a_0_2_3_4.png", None, None),  # the original takes a centre of 0 for no face
        ("a_1_2_0_0.png", None, None),
        ("a.png", None, None),
    ],
)
def test_the_face_in_a_file_name(name, face, stem):
    assert face_in_name(Path("b_1_2_3_4") / name) == face
    if face is not None:
        assert stem_without_face(Path("b_1_2_3_4") / name) == stem


def expected_crop(size, target, face, spread, random_crop, rng):
    """(resized size, left, top) by the rule of kohya's crop_target, rows first, in one piece."""
    (width, height), (out_width, out_height) = size, target
    short = min(target)
    smallest = max(out_height / height, out_width / width)
    low = min(1.0, max(smallest, short / (face.side * spread[1])))
    high = min(1.0, max(low, short / (face.side * spread[0])))
    scale = low if low >= high else rng.uniform(low, high)
    new = {"y": int(height * scale + 0.5), "x": int(width * scale + 0.5)}
    corner = {}
    for axis, length, at in (("y", out_height, face.center[1]), ("x", out_width, face.center[0])):
        middle = int(at * scale + 0.5)
        start = middle - length // 2
        if random_crop:
            reach = max(new[axis] - middle, middle)
            start += rng.randint(0, reach) + rng.randint(0, reach) - reach
        elif spread[0] != spread[1] and face.side > short // 10 and face.side >= 40:
            start += rng.randint(-face.side // 20, +face.side // 20)
        corner[axis] = max(0, min(start, new[axis] - length))
    return (new["x"], new["y"]), (corner["x"], corner["y"])


@pytest.mark.parametrize("random_crop", [False, True])
def test_a_crop_around_a_face_is_the_originals(random_crop):
    rng = random.Random(3)
    for seed in range(300):
        target = (rng.choice((64, 96)), rng.choice((64, 128)))
        size = (rng.randint(target[0], 900), rng.randint(target[1], 900))
        if size == target:
            continue
        face = Face((rng.randint(1, size[0]), rng.randint(0, size[1])), rng.randint(1, 300))
        spread = tuple(sorted((rng.uniform(0.2, 4), rng.uniform(0.2, 4)))) if seed % 3 else (1.5, 1.5)
        subset = SubsetConfig(image_dir="x", face_crop_aug_range=spread, random_crop=random_crop)
        placement, offset = draw_face_crop(size, target, face, subset, random.Random(seed))
        expected = expected_crop(size, target, face, spread, random_crop, random.Random(seed))
        assert (placement.resized, offset) == expected and placement.bucket == target
        assert all(0 <= o <= r - t for o, r, t in zip(offset, placement.resized, target, strict=True))
        assert placement.resized[0] <= size[0] and placement.resized[1] <= size[1]


def test_the_face_fills_the_part_of_the_crop_that_is_asked_for():
    subset = SubsetConfig(image_dir="x", face_crop_aug_range=(2.0, 2.0))
    face = Face((600, 500), 200)
    placement, offset = draw_face_crop((1200, 1000), (64, 64), face, subset, random.Random(0))
    scale = placement.resized[0] / 1200
    assert abs(64 / (face.side * scale) - 2.0) < 0.01
    assert abs(offset[0] + 32 - 600 * scale) <= 1 and abs(offset[1] + 32 - 500 * scale) <= 1


def test_a_least_range_of_0_is_the_images_own_scale_at_most():
    subset = SubsetConfig(image_dir="x", face_crop_aug_range=(0.0, 1.0))
    placement, _ = draw_face_crop((500, 400), (64, 64), Face((100, 100), 80), subset, random.Random(0))
    assert 64 / 80 - 0.01 <= placement.resized[0] / 500 <= 1


def test_an_image_of_the_targets_size_is_left_as_it_is():
    subset = SubsetConfig(image_dir="x", face_crop_aug_range=(1.0, 2.0), random_crop=True)
    placement, offset = draw_face_crop((64, 64), (64, 64), Face((9, 9), 50), subset, random.Random(0))
    assert placement.resized == (64, 64) and offset == (0, 0)
