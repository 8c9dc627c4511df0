"""From clean latents to what the step needs: noise, noised latents, target, weights. NumPy on the host."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from library.data.batch import Posterior
from library.data.run_rng import RunRng
from library.settings.flag_groups import LossArgs
from library.training.loss_weights import LossWeighting, loss_multipliers, mask_weights
from library.training.noise import (
    apply_ip_noise,
    apply_multires_noise,
    apply_noise_offset,
    draw_strength,
    draw_timesteps,
)
from library.training.noise_schedule import NoiseSchedule


@dataclass(frozen=True)
class DiffusionInputs:
    """One batch, noised. Axes: B samples, C channels, H W latent pixels."""

    noisy_BCHW: np.ndarray
    timesteps_B: np.ndarray
    target_BCHW: np.ndarray
    """What the UNet should answer: the noise, or the velocity."""
    weights_B1HW: np.ndarray
    """Weight of each squared error; [B, 1, 1, 1] where no mask tells pixels apart."""


def loss_weighting(loss: LossArgs, v_parameterization: bool) -> LossWeighting:
    """The flags that weigh the loss by timestep."""
    return LossWeighting(
        v_parameterization=v_parameterization,
        min_snr_gamma=loss.min_snr_gamma,
        scale_v_pred_loss_like_noise_pred=loss.scale_v_pred_loss_like_noise_pred,
        v_pred_like_loss=loss.v_pred_like_loss,
    )


def noise_latents(
    schedule: NoiseSchedule,
    latents_BCHW: np.ndarray,
    noise_BCHW: np.ndarray,
    timesteps_B: np.ndarray,
    loss_weights_B: np.ndarray,
    weighting: LossWeighting,
    input_noise_BCHW: np.ndarray | None = None,
    masks_BHW: np.ndarray | None = None,
) -> DiffusionInputs:
    """Noise latents and form the target.

    Args:
        schedule: the noise schedule.
        latents_BCHW: clean latents, scaled.
        noise_BCHW: the noise that the target is made of.
        timesteps_B: 0 to 999.
        loss_weights_B: weight of each sample before those of its timestep.
        weighting: options that weigh by timestep.
        input_noise_BCHW: the noise that the UNet's input is made of, where it is another (ip_noise_gamma).
        masks_BHW: weight of each of the images' pixels, 0 to 1, at the size of the images.
    """
    input_noise = noise_BCHW if input_noise_BCHW is None else input_noise_BCHW
    target = noise_BCHW
    if weighting.v_parameterization:
        target = schedule.velocity(latents_BCHW, noise_BCHW, timesteps_B)
    weights_B1HW = (loss_weights_B * loss_multipliers(schedule, timesteps_B, weighting)).reshape(-1, 1, 1, 1)
    if masks_BHW is not None:
        weights_B1HW = weights_B1HW * mask_weights(masks_BHW, latents_BCHW.shape[2:])
    return DiffusionInputs(
        noisy_BCHW=schedule.add_noise(latents_BCHW, input_noise, timesteps_B),
        timesteps_B=timesteps_B,
        target_BCHW=target,
        weights_B1HW=weights_B1HW.astype(np.float32),
    )


class Draws(Protocol):
    """What is random in a step. A replay gives what was recorded instead."""

    def latents(self, index: int, posterior: Posterior, scale: float) -> np.ndarray:
        """Scaled latents of the ``index``-th batch of the run, drawn from what the VAE says of its pictures."""
        ...

    def diffusion(
        self, index: int, latents_BCHW: np.ndarray, loss_weights_B: np.ndarray, masks_BHW: np.ndarray | None
    ) -> DiffusionInputs:
        """Noise and timesteps for a batch; for the arrays see ``noise_latents``."""
        ...


@dataclass(frozen=True)
class RandomDraws:
    """Draws by kohya's rules and options, each from a stream of its own."""

    rng: RunRng
    schedule: NoiseSchedule
    loss: LossArgs
    v_parameterization: bool

    def latents(self, index: int, posterior: Posterior, scale: float) -> np.ndarray:
        """See Draws."""
        eps = self.rng.numpy("latents", index).standard_normal(posterior.mean.shape, dtype=np.float32)
        return posterior.draw(eps) * np.float32(scale)

    def diffusion(
        self, index: int, latents_BCHW: np.ndarray, loss_weights_B: np.ndarray, masks_BHW: np.ndarray | None
    ) -> DiffusionInputs:
        """See Draws."""
        loss, generator = self.loss, self.rng.numpy("noise", index)
        noise = generator.standard_normal(latents_BCHW.shape, dtype=np.float32)
        if loss.noise_offset:
            offset = draw_strength(generator, loss.noise_offset, loss.noise_offset_random_strength)
            noise = apply_noise_offset(generator, latents_BCHW, noise, offset, loss.adaptive_noise_scale)
        if loss.multires_noise_iterations:
            noise = apply_multires_noise(generator, noise, loss.multires_noise_iterations, loss.multires_noise_discount)
        low_high = loss.min_timestep, loss.max_timestep
        timesteps = draw_timesteps(self.rng.numpy("timesteps", index), len(noise), *low_high)
        input_noise = None
        if loss.ip_noise_gamma:
            gamma = draw_strength(generator, loss.ip_noise_gamma, loss.ip_noise_gamma_random_strength)
            input_noise = apply_ip_noise(generator, noise, gamma)
        weighting = loss_weighting(loss, self.v_parameterization)
        return noise_latents(
            self.schedule, latents_BCHW, noise, timesteps, loss_weights_B, weighting, input_noise, masks_BHW
        )
