"""The DDPM noise schedule of Stable Diffusion: how much signal and noise there is at each timestep. NumPy only.

Computed in float32 like the reference, because near timestep 0 the rounding of 1 - alphas_cumprod shows in the SNR.
"""

from dataclasses import dataclass

import numpy as np

TRAIN_TIMESTEPS = 1000
BETA_START = 0.00085  # "scaled_linear" of Stable Diffusion: the square roots of the betas are evenly spaced
BETA_END = 0.012


@dataclass(frozen=True)
class NoiseSchedule:
    """Tables over the timesteps 0 .. 999, float32 [1000]."""

    betas: np.ndarray
    alphas_cumprod: np.ndarray
    """Share of the signal's variance: noisy = sqrt(a) * latents + sqrt(1 - a) * noise."""
    snr: np.ndarray
    """Signal-to-noise ratio for the loss weights. That of the schedule before zero terminal SNR, as the original has it
    (there it is in effect what everyone trained with): never 0, so no weight is infinite."""

    def coefficients(self, timesteps_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """sqrt(a) and sqrt(1 - a) per sample, float32 [B]."""
        a_B = self.alphas_cumprod[timesteps_B]
        return np.sqrt(a_B), np.sqrt(np.float32(1) - a_B)

    def add_noise(self, latents_BCHW: np.ndarray, noise_BCHW: np.ndarray, timesteps_B: np.ndarray) -> np.ndarray:
        """The latents as they are at their timesteps, float32 [B,C,H,W]."""
        signal, sigma = (_per_sample(c_B, latents_BCHW.ndim) for c_B in self.coefficients(timesteps_B))
        return signal * latents_BCHW + sigma * noise_BCHW

    def velocity(self, latents_BCHW: np.ndarray, noise_BCHW: np.ndarray, timesteps_B: np.ndarray) -> np.ndarray:
        """What a v-prediction model should answer: sqrt(a) * noise - sqrt(1 - a) * latents, float32 [B,C,H,W]."""
        signal, sigma = (_per_sample(c_B, latents_BCHW.ndim) for c_B in self.coefficients(timesteps_B))
        return signal * noise_BCHW - sigma * latents_BCHW


def make_noise_schedule(zero_terminal_snr: bool = False) -> NoiseSchedule:
    """Stable Diffusion's schedule; with `zero_terminal_snr` its last timestep is pure noise."""
    betas = _linspace(np.sqrt(BETA_START), np.sqrt(BETA_END), TRAIN_TIMESTEPS) ** 2
    alphas_cumprod = _alphas_cumprod(betas)
    snr = (np.sqrt(alphas_cumprod) / np.sqrt(np.float32(1) - alphas_cumprod)) ** 2
    if zero_terminal_snr:
        betas = _zero_terminal_snr_betas(alphas_cumprod)
        alphas_cumprod = _alphas_cumprod(betas)
    return NoiseSchedule(betas, alphas_cumprod, snr)


def _linspace(start: float, end: float, count: int) -> np.ndarray:
    """Evenly spaced float32 numbers, counted from both ends with a float32 step, as torch does on a CPU."""
    first, last = np.float32(start), np.float32(end)
    step = (last - first) / np.float32(count - 1)
    index = np.arange(count, dtype=np.float32)
    return np.where(index < count // 2, first + step * index, last - step * (np.float32(count - 1) - index))


def _alphas_cumprod(betas: np.ndarray) -> np.ndarray:
    """Running product of 1 - beta; summed up in float64 and rounded at each step, as torch does on a CPU."""
    alphas = np.float32(1) - betas
    return np.cumprod(alphas, dtype=np.float64).astype(np.float32)


def _zero_terminal_snr_betas(alphas_cumprod: np.ndarray) -> np.ndarray:
    """Betas whose sqrt(alphas_cumprod) is shifted to end at 0 and scaled to begin where it did.

    Algorithm 1 of https://arxiv.org/abs/2305.08891
    """
    root = np.sqrt(alphas_cumprod)
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    shifted = root**2
    alphas = np.concatenate([shifted[:1], shifted[1:] / shifted[:-1]])
    return np.float32(1) - alphas


def _per_sample(values_B: np.ndarray, ndim: int) -> np.ndarray:
    """[B] as [B,1,1,1]."""
    return values_B.reshape(-1, *[1] * (ndim - 1))
