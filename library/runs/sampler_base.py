"""What the samplers share: their protocol, the noise levels, and what a prediction says about the latents.

Noisy latents are written in two ways. Either the noise is added to the clean latents, x = clean + sigma * noise (Karras
et al. 2022, arXiv:2206.00364); or both are mixed so that the variance stays 1, x = alpha * clean + sigma' * noise with
alpha = 1 / sqrt(sigma^2 + 1) and sigma' = sigma * alpha. ``sigma`` always means the first one here. A model sees the
second.

Latents are float32 [B, C, H, W]. Coefficients are formed in float64 and handed over as Python's floats, so that an
array times a coefficient stays float32.
"""

import math
from typing import Protocol

import numpy as np

from library.training.noise_schedule import TRAIN_TIMESTEPS, NoiseSchedule

LEAST_ALPHA_CUMPROD = 2.0**-24
"""Signal that is left at a timestep of pure noise (zero terminal SNR), where sigma would be infinite: 4096 instead."""


class Sampler(Protocol):
    """The way from noise to latents, for one run: ``step`` is called for 0, 1, 2, ... and may remember."""

    timesteps: np.ndarray
    """Where the model is asked, float32 [calls]; some samplers ask twice per step."""
    init_noise_sigma: float
    """What standard normal noise is multiplied with, to start from."""

    def scale_model_input(self, latents: np.ndarray, i: int) -> np.ndarray:
        """The latents as the model wants them at call ``i``."""

    def step(self, noise_pred: np.ndarray, i: int, latents: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """The next latents, from what the model answered at call ``i``; some samplers add noise that they draw."""


def train_sigmas(schedule: NoiseSchedule) -> np.ndarray:
    """Noise beside clean latents of weight 1 at each timestep, float32 [1000]."""
    alphas_cumprod = alphas_above_zero(schedule)
    return np.sqrt((np.float32(1) - alphas_cumprod) / alphas_cumprod)


def alphas_above_zero(schedule: NoiseSchedule) -> np.ndarray:
    """The schedule's alphas_cumprod, none of them 0; float32 [1000]."""
    return np.maximum(schedule.alphas_cumprod, np.float32(LEAST_ALPHA_CUMPROD))


def sigmas_at(timesteps: np.ndarray, schedule: NoiseSchedule) -> np.ndarray:
    """Sigmas at timesteps, which may lie between two whole ones; float64, like the timesteps in shape."""
    return np.interp(timesteps, np.arange(TRAIN_TIMESTEPS), train_sigmas(schedule))


def timesteps_of(sigmas: np.ndarray, schedule: NoiseSchedule) -> np.ndarray:
    """Timesteps of sigmas above 0, found between two whole ones by their logarithms; float64, like sigmas in shape."""
    return np.interp(np.log(sigmas), np.log(train_sigmas(schedule)), np.arange(TRAIN_TIMESTEPS))


def with_end(sigmas: np.ndarray, end: float = 0.0) -> np.ndarray:
    """The sigmas of the steps' starts and the one where the last step ends, float32."""
    return np.append(sigmas, end).astype(np.float32)


def mixing(sigma: float) -> tuple[float, float]:
    """(alpha, sigma') of latents of variance 1 at a noise level; see the top of this file."""
    alpha = 1.0 / math.sqrt(sigma**2 + 1.0)
    return alpha, sigma * alpha


def clean_and_noise(
    latents: np.ndarray, noise_pred: np.ndarray, alpha: float, sigma_mixed: float, v_prediction: bool
) -> tuple[np.ndarray, np.ndarray]:
    """What latents = alpha * clean + sigma_mixed * noise are made of, by the model's prediction.

    A v-prediction model answers v = alpha * noise - sigma_mixed * clean (Salimans and Ho 2022, arXiv:2202.00512).
    """
    if v_prediction:
        return alpha * latents - sigma_mixed * noise_pred, alpha * noise_pred + sigma_mixed * latents
    return (latents - sigma_mixed * noise_pred) / alpha, noise_pred


def draw_noise(generator: np.random.Generator, latents: np.ndarray) -> np.ndarray:
    """Standard normal float32 of the latents' shape."""
    return generator.standard_normal(latents.shape).astype(np.float32)
