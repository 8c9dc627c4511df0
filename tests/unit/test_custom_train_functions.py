"""Loss weights and noise options, by their definitions. The recorded loss tables are in test_noise_schedule."""

import numpy as np
import pytest

from library.training.diffusion import noise_latents
from library.training.loss_weights import (
    LossWeighting,
    debiased_weights,
    huber_thresholds,
    loss_multipliers,
    mask_weights,
    min_snr_weights,
    v_pred_like_factors,
    v_pred_scale,
)
from library.training.noise import (
    apply_ip_noise,
    apply_multires_noise,
    apply_noise_offset,
    draw_strength,
    draw_timesteps,
    upsample_bilinear,
)
from library.training.noise_schedule import make_noise_schedule

SCHEDULE = make_noise_schedule()
TERMINAL = make_noise_schedule(zero_terminal_snr=True)
ALL = np.arange(1000)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_no_option_is_no_weight() -> None:
    np.testing.assert_array_equal(loss_multipliers(SCHEDULE, ALL, LossWeighting()), np.ones(1000))
    off = LossWeighting(min_snr_gamma=0.0, v_pred_like_loss=0.0)
    np.testing.assert_array_equal(loss_multipliers(SCHEDULE, ALL, off), np.ones(1000))


def test_options_multiply() -> None:
    noise = LossWeighting(min_snr_gamma=5, v_pred_like_loss=0.5, debiased_estimation_loss=True)
    expected = (
        min_snr_weights(SCHEDULE.snr, 5, False)
        * v_pred_like_factors(SCHEDULE.snr, 0.5)
        * debiased_weights(SCHEDULE.snr, False)
    )
    found = loss_multipliers(SCHEDULE, ALL, noise)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    v = LossWeighting(
        v_parameterization=True,
        min_snr_gamma=1,
        scale_v_pred_loss_like_noise_pred=True,
        debiased_estimation_loss=True,
    )
    expected = (
        min_snr_weights(SCHEDULE.snr, 1, True) * v_pred_scale(SCHEDULE.snr) * debiased_weights(SCHEDULE.snr, True)
    )
    np.testing.assert_allclose(loss_multipliers(SCHEDULE, ALL, v), expected, rtol=1e-6)


def test_weights_are_finite_with_zero_terminal_snr() -> None:
    options = LossWeighting(v_parameterization=True, min_snr_gamma=5, debiased_estimation_loss=True)
    assert np.all(np.isfinite(loss_multipliers(TERMINAL, ALL, options)))


def test_huber_thresholds() -> None:
    ends = np.array([0, 999])
    np.testing.assert_allclose(huber_thresholds(SCHEDULE, ends, "constant", 0.1, 2.0), [0.2, 0.2])
    np.testing.assert_allclose(huber_thresholds(SCHEDULE, ends, "exponential", 0.1, 2.0), [2, 0.2], rtol=5e-3)
    assert huber_thresholds(TERMINAL, ends, "snr", 0.1)[1] == np.float32(0.1)
    with pytest.raises(ValueError, match="--huber_schedule cubic: allowed are constant, exponential, snr"):
        huber_thresholds(SCHEDULE, ends, "cubic", 0.1)


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


# --- masks ------------------------------------------------------------------------------------------------------------
def test_mask_weights_are_means_over_the_pixels_of_a_latent_pixel() -> None:
    masks = rng(1).random((2, 48, 32), np.float32)
    found = mask_weights(masks, (6, 4))
    assert found.shape == (2, 1, 6, 4) and found.dtype == np.float32
    for row, column in ((0, 0), (5, 3), (2, 1)):
        square = masks[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].astype(np.float64)
        np.testing.assert_allclose(found[:, 0, row, column], square.mean(axis=(1, 2)), rtol=1e-6)
    assert (mask_weights(np.ones((1, 16, 16), np.float32), (2, 2)) == 1).all()


def test_masks_multiply_the_weights_of_the_samples() -> None:
    latents, noise = rng(2).standard_normal((2, 2, 4, 2, 3), np.float32)
    masks = rng(3).random((2, 16, 24), np.float32)
    timesteps, weights = np.array([10, 700]), np.array([1, 0.5], np.float32)
    options = LossWeighting(min_snr_gamma=5.0)
    plain = noise_latents(SCHEDULE, latents, noise, timesteps, weights, options)
    masked = noise_latents(SCHEDULE, latents, noise, timesteps, weights, options, masks_BHW=masks)
    assert plain.weights_B1HW.shape == (2, 1, 1, 1)
    expected = weights * loss_multipliers(SCHEDULE, timesteps, options)
    np.testing.assert_allclose(plain.weights_B1HW.ravel(), expected, rtol=1e-6)
    np.testing.assert_allclose(
        masked.weights_B1HW, expected[:, None, None, None] * mask_weights(masks, (2, 3)), rtol=1e-6
    )
    np.testing.assert_array_equal(masked.noisy_BCHW, plain.noisy_BCHW)
    assert masked.weights_B1HW.dtype == plain.weights_B1HW.dtype == np.float32
