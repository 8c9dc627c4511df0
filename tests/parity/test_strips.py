"""Strips of rows: how they are cut, regrouped and given their neighbours, and a norm over all of them."""

import numpy as np
import pytest
from mindspore import dtype as mstype

from library.models.strips import GroupNorm, cut, emptied, joined_array, neighbourhoods, regroup, rows_per_strip

pytestmark = pytest.mark.usefixtures("device")


def picture(height: int) -> np.ndarray:
    return np.random.default_rng(height).standard_normal((2, 3, height, 5)).astype(np.float32)


def test_rows_are_even_and_divide_the_height_where_they_can() -> None:
    assert rows_per_strip(64, 100, 6400) == 64  # fits
    assert rows_per_strip(64, 100, 6399) == 32
    assert rows_per_strip(96, 100, 2000) == 16  # 20 would do, but five strips would not be alike
    assert rows_per_strip(37, 100, 1000) == 10  # 37 is prime: three strips of 10 and one of 7
    assert rows_per_strip(37, 100, 3700) == 37
    assert rows_per_strip(64, 100, 1) == 2


@pytest.mark.parametrize("height", range(1, 70))
def test_a_strip_is_within_the_limit(height: int) -> None:
    for limit in range(200, 7000, 300):
        rows = rows_per_strip(height, 100, limit)
        assert rows * 100 <= limit
        assert rows == height or rows % 2 == 0
        assert -(-height // rows) < 2 * -(-height // (limit // 200 * 2))  # less than twice as many as must be


@pytest.mark.parametrize(("rows", "others"), [(4, 6), (6, 4), (3, 3), (1, 11), (11, 1), (2, 5)])
def test_regrouped_strips_are_the_same_picture(rows: int, others: int) -> None:
    x = picture(11)
    strips = cut(x, rows, mstype.float32)
    found = regroup(strips, others)
    assert not strips
    assert [strip.shape[2] for strip in found] == [min(others, 11 - i) for i in range(0, 11, others)]
    assert np.array_equal(joined_array(found), x)


def test_neighbours_are_the_rows_next_to_a_strip() -> None:
    x = picture(7)
    beyond = np.zeros((2, 3, 1, 5), np.float32)
    around = np.concatenate((beyond, x, beyond), axis=2)
    strips = cut(x, 3, mstype.float32)
    found = list(neighbourhoods(emptied(strips)))
    assert not strips
    assert [at.strip.shape[2] for at in found] == [3, 3, 1]
    for at, first in zip(found, (0, 3, 6), strict=True):
        rows = np.concatenate([part.asnumpy() for part in (at.above, at.strip, at.below)], axis=2)
        assert np.array_equal(rows, around[:, :, first : first + rows.shape[2]])


def test_a_norm_of_uneven_strips_is_that_of_the_whole() -> None:
    """Strips of very different means, so that their spread around the whole's counts."""
    rng = np.random.default_rng(0)
    x = picture(9).astype(np.float64).repeat(4, axis=1) + np.arange(9).reshape(9, 1)  # 12 channels
    weight, bias = rng.standard_normal((2, 12)).astype(np.float32)
    parts = [x[:, :, :5].reshape(2 * 4, -1), x[:, :, 5:].reshape(2 * 4, -1)]
    moments = [np.stack((part.mean(1), part.var(1)), 1).astype(np.float32) for part in parts]
    scale, shift = GroupNorm(weight, bias, 4, 1e-6).of_channels([5, 4], moments).asnumpy().reshape(2, 2, 12, 1, 1)
    grouped = x.reshape(2, 4, -1)
    normal = (grouped - grouped.mean(2, keepdims=True)) / np.sqrt(grouped.var(2, keepdims=True) + 1e-6)
    expected = normal.reshape(x.shape) * weight.reshape(12, 1, 1) + bias.reshape(12, 1, 1)
    np.testing.assert_allclose(x * scale + shift, expected, atol=1e-5)  # moments of size 10, rounded to float32
