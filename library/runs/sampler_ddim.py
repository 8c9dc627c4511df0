"""Samplers that go from one of the trained timesteps to another: DDIM, DDPM, PNDM.

Latents have variance 1 on the way: x = sqrt(a) * clean + sqrt(1 - a) * noise with a = alphas_cumprod. The settings are
those of SDXL's own configuration: timesteps 1, 1 + r, 1 + 2 r, ... with r = 1000 // steps, the latents are not clipped,
and the last step of DDIM and PNDM ends at timestep 0's noise level instead of none.
"""

import math

import numpy as np

from library.runs.sampler_base import alphas_above_zero, clean_and_noise, draw_noise
from library.training.noise_schedule import TRAIN_TIMESTEPS, NoiseSchedule

STEPS_OFFSET = 1  # SDXL's scheduler_config.json


class _AtTimesteps:
    """Base: timesteps, alphas_cumprod and what a prediction means."""

    init_noise_sigma = 1.0

    def __init__(self, schedule: NoiseSchedule, steps: int, v_prediction: bool) -> None:
        """See the top of this file."""
        self.v_prediction = v_prediction
        self.ratio = TRAIN_TIMESTEPS // steps
        rising = np.minimum(np.arange(steps) * self.ratio + STEPS_OFFSET, TRAIN_TIMESTEPS - 1)
        self.timesteps = rising[::-1].astype(np.float32)
        self._alphas_cumprod = alphas_above_zero(schedule).astype(np.float64)

    def scale_model_input(self, latents: np.ndarray, i: int) -> np.ndarray:
        """The latents as they are."""
        return latents

    def alpha_cumprod(self, timestep: float) -> float:
        """Share of the signal's variance; that of timestep 0 for all below it."""
        return float(self._alphas_cumprod[max(int(timestep), 0)])

    def clean_and_noise(self, noise_pred: np.ndarray, i: int, latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the latents are made of at call ``i``."""
        a = self.alpha_cumprod(self.timesteps[i])
        return clean_and_noise(latents, noise_pred, math.sqrt(a), math.sqrt(1.0 - a), self.v_prediction)


class Ddim(_AtTimesteps):
    """DDIM without added noise (eta 0): Song et al. 2020, arXiv:2010.02502, equation 12."""

    def step(self, noise_pred: np.ndarray, i: int, latents: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """One step."""
        clean, noise = self.clean_and_noise(noise_pred, i, latents)
        a_next = self.alpha_cumprod(self.timesteps[i] - self.ratio)
        return math.sqrt(a_next) * clean + math.sqrt(1.0 - a_next) * noise


class Ddpm(_AtTimesteps):
    """Ancestral sampling with the small variance: Ho et al. 2020, arXiv:2006.11239, equations 6 and 7.

    A step over several timesteps is one of a process with fewer of them; the last one ends without noise.
    """

    def step(self, noise_pred: np.ndarray, i: int, latents: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """One step."""
        clean, _ = self.clean_and_noise(noise_pred, i, latents)
        is_last = i == len(self.timesteps) - 1
        a = self.alpha_cumprod(self.timesteps[i])
        a_next = 1.0 if is_last else self.alpha_cumprod(self.timesteps[i + 1])
        beta = 1.0 - a / a_next
        of_clean = math.sqrt(a_next) * beta / (1.0 - a)
        of_latents = math.sqrt(a / a_next) * (1.0 - a_next) / (1.0 - a)
        mean = of_clean * clean + of_latents * latents
        return mean + math.sqrt((1.0 - a_next) / (1.0 - a) * beta) * draw_noise(generator, latents)


class Pndm(_AtTimesteps):
    """Pseudo linear multistep of order 4 after three steps of pseudo Runge-Kutta: Liu et al. 2022, arXiv:2202.09778.

    The first three steps ask the model four times each. Predictions are combined as the model gives them, also those
    of a v-prediction model, which are turned into noise after that.
    """

    RUNGE_KUTTA = (1.0 / 6.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 6.0)
    ADAMS_BASHFORTH = (55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0)  # newest first
    WARM_UP = 3

    def __init__(self, schedule: NoiseSchedule, steps: int, v_prediction: bool) -> None:
        """At least 4 steps."""
        super().__init__(schedule, steps, v_prediction)
        assert steps > self.WARM_UP, f"{steps} steps are too few for PNDM"
        starts = self.timesteps
        self._half = self.ratio // 2
        calls = []
        for here, there in zip(starts[: self.WARM_UP], starts[1 : self.WARM_UP + 1], strict=True):
            calls += [here, there + self._half, there + self._half, there]
        self.timesteps = np.array([*calls, *starts[self.WARM_UP :]], np.float32)
        self._stages: list[np.ndarray] = []
        self._history: list[np.ndarray] = []  # newest first
        self._start: np.ndarray | None = None

    def step(self, noise_pred: np.ndarray, i: int, latents: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """One call's part of a step."""
        if i < 4 * self.WARM_UP:
            return self._runge_kutta(noise_pred, i, latents)
        self._history = [noise_pred, *self._history][: len(self.ADAMS_BASHFORTH)]
        timestep = self.timesteps[i]
        return self._transfer(latents, _combined(self.ADAMS_BASHFORTH, self._history), timestep, timestep - self.ratio)

    def _runge_kutta(self, noise_pred: np.ndarray, i: int, latents: np.ndarray) -> np.ndarray:
        stage = i % 4
        if stage == 0:
            self._start, self._stages = latents, []
            self._history = [noise_pred, *self._history]
        assert self._start is not None
        self._stages.append(noise_pred)
        here = self.timesteps[i]
        there = here - (self._half if stage in (0, 2) else 0)
        use = _combined(self.RUNGE_KUTTA, self._stages) if stage == 3 else noise_pred
        return self._transfer(self._start, use, self.timesteps[i - stage], there)

    def _transfer(self, latents: np.ndarray, noise_pred: np.ndarray, here: float, there: float) -> np.ndarray:
        """Latents at another timestep, for the noise in them (the paper's equation 11)."""
        a, a_next = self.alpha_cumprod(here), self.alpha_cumprod(there)
        clean, noise = clean_and_noise(latents, noise_pred, math.sqrt(a), math.sqrt(1.0 - a), self.v_prediction)
        return math.sqrt(a_next) * clean + math.sqrt(1.0 - a_next) * noise


def _combined(weights: tuple[float, ...], predictions: list[np.ndarray]) -> np.ndarray:
    return np.sum([weight * each for weight, each in zip(weights, predictions, strict=True)], axis=0)
