"""Samplers of x = clean + sigma * noise, which follow dx / dsigma = (x - clean) / sigma down to sigma = 0.

Karras et al. 2022 (arXiv:2206.00364) and Katherine Crowson's k-diffusion. The start is noise of the largest sigma.
"""

import math
from abc import ABC, abstractmethod

import numpy as np

from library.runs.sampler_base import draw_noise, mixing, sigmas_at, timesteps_of, with_end
from library.training.noise_schedule import TRAIN_TIMESTEPS, NoiseSchedule

_GAUSS_NODES, _GAUSS_WEIGHTS = np.polynomial.legendre.leggauss(2)
"""Quadrature that is exact for polynomials of degree 3, which those of LMS of order 4 are."""


class Euler:
    """Straight along the slope of each step's start: Karras et al., algorithm 1 of order one, without churn."""

    def __init__(self, schedule: NoiseSchedule, steps: int, v_prediction: bool) -> None:
        """Timesteps are spread evenly over all of them, from the noisiest; a single step starts at timestep 0."""
        self.v_prediction = v_prediction
        self.timesteps = np.linspace(0, TRAIN_TIMESTEPS - 1, steps, dtype=np.float32)[::-1].copy()
        self.sigmas = with_end(sigmas_at(self.timesteps, schedule))
        self.init_noise_sigma = float(self.sigmas.max())
        self.call_sigmas = self.sigmas[:-1]

    def scale_model_input(self, latents: np.ndarray, i: int) -> np.ndarray:
        """The latents with variance 1."""
        return latents * mixing(float(self.call_sigmas[i]))[0]

    def slope(self, noise_pred: np.ndarray, i: int, latents: np.ndarray) -> np.ndarray:
        """dx / dsigma at call ``i``: the noise in the latents."""
        if not self.v_prediction:
            return noise_pred
        sigma = float(self.call_sigmas[i])
        alpha, sigma_mixed = mixing(sigma)
        return alpha * noise_pred + sigma_mixed * (latents * alpha)

    def bounds(self, step: int) -> tuple[float, float]:
        """Sigma at the start and at the end of a step."""
        return float(self.sigmas[step]), float(self.sigmas[step + 1])

    def step(self, noise_pred: np.ndarray, i: int, latents: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """One step."""
        sigma, sigma_next = self.bounds(i)
        return latents + (sigma_next - sigma) * self.slope(noise_pred, i, latents)


def ancestral(sigma: float, sigma_next: float) -> tuple[float, float]:
    """(Sigma to go down to, sigma of the noise to add there) of a step: their squares add up to sigma_next^2.

    As Song et al. 2020 (arXiv:2011.13456, ancestral sampling of the variance exploding process) and k-diffusion.
    """
    down = sigma_next**2 / sigma
    return down, math.sqrt(sigma_next**2 - down**2)


class EulerAncestral(Euler):
    """Euler further down than the step's end, and noise back up to it."""

    def step(self, noise_pred: np.ndarray, i: int, latents: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """One step."""
        sigma, sigma_next = self.bounds(i)
        down, up = ancestral(sigma, sigma_next)
        latents = latents + (down - sigma) * self.slope(noise_pred, i, latents)
        return latents + up * draw_noise(generator, latents)


class Lms(Euler):
    """Linear multistep (Adams-Bashforth) of order 4: integrates the polynomial through the last slopes."""

    ORDER = 4

    def __init__(self, schedule: NoiseSchedule, steps: int, v_prediction: bool) -> None:
        """As Euler's."""
        super().__init__(schedule, steps, v_prediction)
        self._slopes: list[np.ndarray] = []  # newest first

    def step(self, noise_pred: np.ndarray, i: int, latents: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """One step."""
        self._slopes = [self.slope(noise_pred, i, latents), *self._slopes][: self.ORDER]
        for slope, weight in zip(self._slopes, self._weights(i), strict=True):
            latents = latents + weight * slope
        return latents

    def _weights(self, i: int) -> list[float]:
        """Integral over the step of the polynomial that is 1 at one of the last sigmas and 0 at the others."""
        known = self.sigmas[i - len(self._slopes) + 1 : i + 1][::-1].astype(np.float64)
        start, end = self.bounds(i)
        at = start + (end - start) * (_GAUSS_NODES + 1.0) / 2.0
        weights = []
        for k, sigma in enumerate(known):
            others = np.delete(known, k)
            values = np.prod((at[:, None] - others) / (sigma - others), axis=1)
            weights.append(float((end - start) / 2.0 * (_GAUSS_WEIGHTS @ values)))
        return weights


class _TwoCalls(Euler, ABC):
    """Base of those that ask the model twice per step, at its start and at a second place; once in the last step."""

    def __init__(self, schedule: NoiseSchedule, steps: int, v_prediction: bool) -> None:
        """As Euler's."""
        super().__init__(schedule, steps, v_prediction)
        self._start_timesteps = self.timesteps
        self.timesteps, self.call_sigmas = (np.empty(2 * steps - 1, np.float32) for _ in range(2))
        self.timesteps[::2], self.call_sigmas[::2] = self._start_timesteps, self.sigmas[:-1]
        self.call_sigmas[1::2] = [self.second_sigma(step) for step in range(steps - 1)]
        self.timesteps[1::2] = self.second_timesteps(schedule)
        self._start = self._first_slope = np.empty(0, np.float32)

    @abstractmethod
    def second_sigma(self, step: int) -> float:
        """Where a step asks again; 0, which ends it, in the last one."""

    def second_timesteps(self, schedule: NoiseSchedule) -> np.ndarray:
        """The timesteps of these sigmas, for all steps but the last."""
        return timesteps_of(self.call_sigmas[1::2], schedule)

    def step(self, noise_pred: np.ndarray, i: int, latents: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """To the second place with the slope of the start, then from the start with what was learned there."""
        slope = self.slope(noise_pred, i, latents)
        step, is_second = divmod(i, 2)
        if is_second:
            return self.finish(step, slope, generator)
        self._start, self._first_slope = latents, slope
        return latents + (self.second_sigma(step) - self.bounds(step)[0]) * slope

    @abstractmethod
    def finish(self, step: int, second_slope: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """The latents at the step's end."""


class Heun(_TwoCalls):
    """The mean of the slopes at the start and at the end: Karras et al., algorithm 1 without churn."""

    def second_sigma(self, step: int) -> float:
        """The end."""
        return self.bounds(step)[1]

    def second_timesteps(self, schedule: NoiseSchedule) -> np.ndarray:
        """Those of the next steps' starts."""
        return self._start_timesteps[1:]

    def finish(self, step: int, second_slope: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """The latents at the step's end."""
        sigma, sigma_next = self.bounds(step)
        return self._start + (sigma_next - sigma) / 2.0 * (self._first_slope + second_slope)


class Dpm2(_TwoCalls):
    """The slope of the step's middle, by the logarithm of sigma: k-diffusion, after DPM-Solver-2 (arXiv:2206.00927)."""

    def target(self, step: int) -> tuple[float, float]:
        """(Sigma to go down to, sigma of the noise to add there)."""
        return self.bounds(step)[1], 0.0

    def second_sigma(self, step: int) -> float:
        """The middle."""
        return math.sqrt(self.bounds(step)[0] * self.target(step)[0])

    def finish(self, step: int, second_slope: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """The latents at the step's end."""
        down, up = self.target(step)
        latents = self._start + (down - self.bounds(step)[0]) * second_slope
        return latents + up * draw_noise(generator, latents) if up else latents


class Dpm2Ancestral(Dpm2):
    """As Dpm2, further down than the step's end, and noise back up to it."""

    def target(self, step: int) -> tuple[float, float]:
        """(Sigma to go down to, sigma of the noise to add there)."""
        return ancestral(*self.bounds(step))
