"""Noise and timesteps by the original's options, by their definitions."""

import numpy as np
import pytest

from library.training.noise import (
    apply_ip_noise,
    apply_multires_noise,
    apply_noise_offset,
    draw_strength,
    draw_timesteps,
    upsample_bilinear,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_timesteps_fill_their_range() -> None:
    assert set(draw_timesteps(rng(), 20_000).tolist()) == set(range(1000))
    assert set(draw_timesteps(rng(), 1000, 990).tolist()) == set(range(990, 1000))
    assert set(draw_timesteps(rng(), 1000, None, 3).tolist()) == {0, 1, 2}
    assert draw_timesteps(rng(), 3, 500, 500).tolist() == [500] * 3
    assert draw_timesteps(rng(), 3).dtype == np.int64


@pytest.mark.parametrize(("low", "high"), [(10, 5), (-1, 10), (0, 1001), (1000, None)])
def test_timesteps_outside_the_schedule(low: int, high: int | None) -> None:
    with pytest.raises(ValueError, match="allowed is 0 <= min_timestep <= max_timestep <= 1000"):
        draw_timesteps(rng(), 1, low, high)


def test_random_strength() -> None:
    assert draw_strength(rng(), 0.5, False) == 0.5
    drawn = [draw_strength(generator, 0.5, True) for generator in map(rng, range(200))]
    assert 0 <= min(drawn) < 0.05
    assert 0.45 < max(drawn) < 0.5


def test_noise_offset_is_one_number_per_channel() -> None:
    noise = rng(1).standard_normal((2, 4, 8, 6), dtype=np.float32)
    offset = apply_noise_offset(rng(2), noise, noise, 0.1) - noise
    expected = 0.1 * rng(2).standard_normal((2, 4, 1, 1), dtype=np.float32)
    np.testing.assert_allclose(offset, np.broadcast_to(expected, noise.shape), atol=1e-6)


def test_adaptive_noise_scale_follows_the_latents_mean() -> None:
    latents = np.zeros((1, 3, 2, 2), np.float32)
    latents[0, 1], latents[0, 2] = -2.0, [[1, -1], [1, -1]]
    noise = np.zeros_like(latents)
    drawn = rng(2).standard_normal((1, 3, 1, 1), dtype=np.float32)[0, :, 0, 0]
    found = apply_noise_offset(rng(2), latents, noise, 0.1, 0.05)[0, :, 0, 0]
    np.testing.assert_allclose(found, np.array([0.1, 0.2, 0.1]) * drawn, rtol=1e-6)
    cut = apply_noise_offset(rng(2), latents, noise, 0.05, -0.05)[0, :, 0, 0]
    np.testing.assert_allclose(cut, np.array([0.05, 0, 0.05]) * drawn, rtol=1e-6)


def test_multires_noise_step_by_step() -> None:
    noise = rng(1).standard_normal((2, 4, 16, 12), dtype=np.float32)
    found = apply_multires_noise(rng(5), noise, 3, 0.3)
    generator, expected = rng(5), noise.astype(np.float64)
    for layer in range(3):
        shrink = (generator.random() * 2 + 2) ** layer
        size = max(1, int(16 / shrink)), max(1, int(12 / shrink))
        expected += 0.3**layer * upsample_bilinear(
            generator.standard_normal((2, 4, *size), dtype=np.float32), 16, 12
        ).astype(np.float64)
        if 1 in size:
            break
    np.testing.assert_allclose(found, expected / expected.std(ddof=1), atol=1e-5)
    assert found.dtype == np.float32
    assert found.std(ddof=1) == pytest.approx(1, abs=1e-6)


def test_multires_noise_stops_at_a_side_of_one() -> None:
    """A row of latents has a side of 1 in the first layer, so that more iterations change nothing."""
    noise = rng(1).standard_normal((1, 4, 1, 12), dtype=np.float32)
    np.testing.assert_array_equal(
        apply_multires_noise(rng(5), noise, 1, 0.9), apply_multires_noise(rng(5), noise, 10, 0.9)
    )


def test_multires_noise_leaves_its_input() -> None:
    noise = rng(1).standard_normal((1, 4, 8, 8), dtype=np.float32)
    before = noise.copy()
    apply_multires_noise(rng(5), noise, 6, 0.3)
    np.testing.assert_array_equal(noise, before)


def test_ip_noise() -> None:
    noise = rng(1).standard_normal((1, 4, 64, 64), dtype=np.float32)
    found = apply_ip_noise(rng(2), noise, 0.1)
    np.testing.assert_array_equal(
        found, noise + np.float32(0.1) * rng(2).standard_normal(noise.shape, dtype=np.float32)
    )


def test_upsample_bilinear_small_case() -> None:
    """2 to 4 pixels: centres at -0.25 (cut to 0), 0.25, 0.75, 1.25 (past the last), as torch documents it."""
    line = np.array([[[[0.0, 4.0]]]], np.float32)
    assert upsample_bilinear(line, 1, 4).tolist() == [[[[0, 1, 3, 4]]]]
    assert upsample_bilinear(line, 2, 2).tolist() == [[[[0, 4], [0, 4]]]]
    assert upsample_bilinear(line, 1, 1).tolist() == [[[[2]]]]


@pytest.mark.parametrize(
    ("size", "target"), [((3, 5), (16, 12)), ((16, 12), (16, 12)), ((1, 7), (9, 9)), ((5, 4), (7, 3))]
)
def test_upsample_bilinear_by_its_definition(size: tuple[int, int], target: tuple[int, int]) -> None:
    """Pixel by pixel after the rule: source = max(0, (i + 0.5) * in / out - 0.5), between its two neighbours."""
    x = rng(3).standard_normal((2, 3, *size), dtype=np.float32)
    expected = np.zeros((2, 3, *target))
    for i in range(target[0]):
        for j in range(target[1]):
            y0, fy = divmod(max(0.0, (i + 0.5) * size[0] / target[0] - 0.5), 1)
            x0, fx = divmod(max(0.0, (j + 0.5) * size[1] / target[1] - 0.5), 1)
            rows = (min(int(y0), size[0] - 1), min(int(y0) + 1, size[0] - 1))
            columns = (min(int(x0), size[1] - 1), min(int(x0) + 1, size[1] - 1))
            for row, share_y in zip(rows, (1 - fy, fy), strict=True):
                for column, share_x in zip(columns, (1 - fx, fx), strict=True):
                    expected[:, :, i, j] += share_y * share_x * x[:, :, row, column]
    np.testing.assert_allclose(upsample_bilinear(x, *target), expected, atol=2e-6)
