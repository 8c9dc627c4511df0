"""Buckets against the reference's tables, and the properties they must have for any image."""

import json
import random

import pytest

from library.data.buckets import (
    BucketSelector,
    Placement,
    batch_list,
    crop_ltrb,
    make_bucket_resolutions,
    round_limits,
    select_bucket_no_upscale,
    shuffle_as_kohya,
)
from tools.table_checks import TABLE_CHECKS


@pytest.mark.parametrize("table", ["make_bucket_resolutions", "select_bucket", "shuffle_buckets"])
def test_reference_table(golden, table):
    cases = json.loads((golden / "kohya_tables.json").read_text(encoding="utf-8"))[table]
    assert TABLE_CHECKS[table](cases) == []


def test_a_wrong_table_is_noticed():
    group = {"no_upscale": True, "resolution": [512, 512], "min": 256, "max": 1024, "steps": 64}
    refused = {"image": [3000, 1], "error": "ZeroDivisionError"}
    right = {"image": [512, 512], "bucket": [512, 512], "resized": [512, 512], "ar_error": 0.0}
    wrong = right | {"bucket": [512, 448]}
    check = TABLE_CHECKS["select_bucket"]
    assert check([group | {"cases": [right, refused]}]) == []
    accepted = {"image": [512, 512], "error": "should be refused"}
    assert len(check([group | {"cases": [wrong, accepted, right | {"image": [3000, 1]}]}])) == 3


def test_bucket_list_of_a_small_area():
    assert make_bucket_resolutions((128, 128), 64, 256, 64) == [(64, 192), (64, 256), (128, 128), (192, 64), (256, 64)]


def test_round_limits():
    assert round_limits(300, 1000, 64) == (256, 1024)
    assert round_limits(256, 1024, 64) == (256, 1024)


@pytest.mark.parametrize("no_upscale", [False, True])
def test_the_resized_image_covers_its_bucket(no_upscale):
    rng = random.Random(0)
    selector = BucketSelector((512, 512), enabled=True, min_side=256, max_side=1024, steps=64, no_upscale=no_upscale)
    for _ in range(500):
        size = (rng.randint(64, 3000), rng.randint(64, 3000))
        if no_upscale and max(size) / min(size) > 20:
            continue
        placement = selector.select(size)
        assert placement.resized[0] >= placement.bucket[0]
        assert placement.resized[1] >= placement.bucket[1]
        assert placement.bucket[0] % 64 == placement.bucket[1] % 64 == 0
        if no_upscale:
            assert placement.resized[0] <= size[0] and placement.resized[1] <= size[1]


def test_without_buckets_every_image_gets_the_resolution():
    selector = BucketSelector((640, 448), enabled=False, min_side=256, max_side=1024, steps=64, no_upscale=True)
    assert selector.select((100, 100)) == Placement((640, 448), (640, 640), 640 / 448 - 1)


@pytest.mark.parametrize("size", [(40, 40), (1, 3000), (3000, 1), (100000, 12)])
def test_an_image_too_thin_for_no_upscale_is_refused(size):
    selector = BucketSelector((512, 512), enabled=True, min_side=256, max_side=1024, steps=64, no_upscale=True)
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} pixels"):
        selector.select(size)


def test_no_upscale_never_enlarges_a_small_image():
    assert select_bucket_no_upscale((200, 130), 512 * 512, 64) == Placement((192, 128), (200, 130), 1.5 - 200 / 130)


def test_crop_is_the_letter_box_offset():
    assert crop_ltrb((1024, 1024), (2000, 1000)) == (0, 256.0, 1024, 768.0)
    assert crop_ltrb((1024, 1024), (1000, 2000)) == (256.0, 0, 768.0, 1024)


def test_batches_never_cross_buckets_and_keep_the_short_one():
    assert batch_list([5, 0, 4], 2) == [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1)]


def test_shuffle_as_kohya_leaves_its_input_alone():
    batches, buckets = [(0, 0), (0, 1), (1, 0)], ["abc", "xy"]
    shuffled, contents = shuffle_as_kohya(batches, buckets, random.Random(3))
    assert batches == [(0, 0), (0, 1), (1, 0)]
    assert sorted(shuffled) == batches and [sorted(content) for content in contents] == [list("abc"), list("xy")]
