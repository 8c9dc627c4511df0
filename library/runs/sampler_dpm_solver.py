"""DPM-Solver and DPM-Solver++ of order 2 (Lu et al. 2022, arXiv:2206.00927 and arXiv:2211.01095).

Latents have variance 1 on the way: x = alpha * clean + sigma' * noise. The papers' lambda = log(alpha / sigma') is
-log(sigma), so a step's h = lambda_t - lambda_s is log(sigma / sigma_next) and exp(-h) is sigma_next / sigma, which is
defined down to sigma_next = 0.
"""

import math

import numpy as np

from library.runs.sampler_base import (
    clean_and_noise,
    draw_noise,
    mixing,
    sigmas_at,
    timesteps_of,
    train_sigmas,
    with_end,
)
from library.training.noise_schedule import TRAIN_TIMESTEPS, NoiseSchedule

KARRAS_RHO = 7.0  # Karras et al. 2022, equation 5
FEW_STEPS = 15
"""With fewer, the last step of a solver that ends above sigma = 0 is of order 1, which is steadier."""


class _DpmSolver:
    """Base: timesteps, sigmas and what a prediction means."""

    init_noise_sigma = 1.0

    def __init__(self, schedule: NoiseSchedule, steps: int, v_prediction: bool, karras: bool = False) -> None:
        """Whole timesteps, evenly spread, without the 0 that would be the end; or Karras' sigmas."""
        self.v_prediction = v_prediction
        self.steps = steps
        if karras:
            sigmas = karras_sigmas(schedule, steps)
            self.timesteps = timesteps_of(sigmas, schedule).round().astype(np.float32)
        else:
            self.timesteps = np.linspace(0, TRAIN_TIMESTEPS - 1, steps + 1).round()[:0:-1].astype(np.float32)
            sigmas = sigmas_at(self.timesteps, schedule)
        self.sigmas = with_end(sigmas)

    def scale_model_input(self, latents: np.ndarray, i: int) -> np.ndarray:
        """The latents as they are."""
        return latents

    def clean_and_noise(self, noise_pred: np.ndarray, i: int, latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the latents are made of at call ``i``."""
        alpha, sigma_mixed = mixing(float(self.sigmas[i]))
        return clean_and_noise(latents, noise_pred, alpha, sigma_mixed, self.v_prediction)


def karras_sigmas(schedule: NoiseSchedule, steps: int) -> np.ndarray:
    """Sigmas of the steps' starts, denser where there is little noise; float64 [steps], falling."""
    least, *_, most = (float(sigma) ** (1.0 / KARRAS_RHO) for sigma in train_sigmas(schedule))
    return (most + np.linspace(0.0, 1.0, steps) * (least - most)) ** KARRAS_RHO


def half_way(newest: np.ndarray, older: np.ndarray, sigma: float, sigma_older: float, h: float) -> np.ndarray:
    """Prediction for the middle of a step of length h, on the line through the two last ones in lambda."""
    h_0 = math.log(sigma_older / sigma)
    return newest if h_0 == 0.0 else newest + 0.5 * h / h_0 * (newest - older)


class DpmSolverPP2M(_DpmSolver):
    """DPM-Solver++(2M), which reuses the last step's prediction (algorithm 2); with ``sde``, noise is added.

    The stochastic one is SDE-DPM-Solver++(2M) of the same paper. First and last step are of order 1.
    """

    def __init__(
        self, schedule: NoiseSchedule, steps: int, v_prediction: bool, karras: bool = False, sde: bool = False
    ) -> None:
        """See the class and its base."""
        super().__init__(schedule, steps, v_prediction, karras)
        self.sde = sde
        self._older: np.ndarray | None = None

    def step(self, noise_pred: np.ndarray, i: int, latents: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """One step."""
        sigma, sigma_next = float(self.sigmas[i]), float(self.sigmas[i + 1])
        clean, _ = self.clean_and_noise(noise_pred, i, latents)
        data, self._older = self._data(clean, i, sigma, sigma_next), clean
        if not self.sde:
            return first_order(latents, data, sigma, sigma_next)
        (alpha_next, mixed_next), (_, mixed) = mixing(sigma_next), mixing(sigma)
        left = sigma_next / sigma  # exp(-h)
        latents = (mixed_next / mixed * left) * latents + alpha_next * (1.0 - left**2) * data
        return latents + mixed_next * math.sqrt(1.0 - left**2) * draw_noise(generator, latents)

    def _data(self, clean: np.ndarray, i: int, sigma: float, sigma_next: float) -> np.ndarray:
        """Clean latents that the step works with: for its middle, where an older prediction helps."""
        if self._older is None or i == self.steps - 1:
            return clean
        return half_way(clean, self._older, sigma, float(self.sigmas[i - 1]), math.log(sigma / sigma_next))


def first_order(latents: np.ndarray, data: np.ndarray, sigma: float, sigma_next: float) -> np.ndarray:
    """A step towards clean latents that do not change on the way; exact for DDIM's equation."""
    (alpha_next, mixed_next), (_, mixed) = mixing(sigma_next), mixing(sigma)
    return mixed_next / mixed * latents + alpha_next * (1.0 - sigma_next / sigma) * data


class DpmSolverPP2S(_DpmSolver):
    """DPM-Solver++(2S): every second prediction is of the middle of two steps (algorithm 1).

    A step of order 1, then one of order 2 over both; the last is of order 1, for an even count the last two.
    """

    def __init__(self, schedule: NoiseSchedule, steps: int, v_prediction: bool) -> None:
        """See the class and its base."""
        super().__init__(schedule, steps, v_prediction)
        self._start: np.ndarray | None = None
        self._start_clean: np.ndarray | None = None

    def step(self, noise_pred: np.ndarray, i: int, latents: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """One step."""
        sigma, sigma_next = float(self.sigmas[i]), float(self.sigmas[i + 1])
        clean, _ = self.clean_and_noise(noise_pred, i, latents)
        if i % 2 == 0 or i == self.steps - 1:
            self._start, self._start_clean = latents, clean
            return first_order(latents, clean, sigma, sigma_next)
        assert self._start is not None and self._start_clean is not None, "a step of order 2 came first"
        sigma_start = float(self.sigmas[i - 1])
        h = math.log(sigma_start / sigma_next)
        data = half_way(self._start_clean, clean, sigma_start, sigma, h)
        return first_order(self._start, data, sigma_start, sigma_next)


class DpmSolver2M(_DpmSolver):
    """DPM-Solver of order 2 in several steps: like DPM-Solver++(2M), of the noise in the place of the clean latents.

    It cannot go to sigma = 0 and ends at the noise of timestep 0.
    """

    def __init__(self, schedule: NoiseSchedule, steps: int, v_prediction: bool) -> None:
        """See the class and its base."""
        super().__init__(schedule, steps, v_prediction)
        self.sigmas[-1] = train_sigmas(schedule)[0]
        self._older: np.ndarray | None = None

    def step(self, noise_pred: np.ndarray, i: int, latents: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """One step."""
        sigma, sigma_next = float(self.sigmas[i]), float(self.sigmas[i + 1])
        _, noise = self.clean_and_noise(noise_pred, i, latents)
        older, self._older = self._older, noise
        is_last_of_few = i == self.steps - 1 and self.steps < FEW_STEPS
        if older is not None and not is_last_of_few:
            noise = half_way(noise, older, sigma, float(self.sigmas[i - 1]), math.log(sigma / sigma_next))
        (alpha, _), (alpha_next, mixed_next) = mixing(sigma), mixing(sigma_next)
        return alpha_next / alpha * latents - mixed_next * (sigma / sigma_next - 1.0) * noise
