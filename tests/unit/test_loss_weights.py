"""Weights of the loss, by their definitions. The recorded tables of weights are in test_noise_schedule."""

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
