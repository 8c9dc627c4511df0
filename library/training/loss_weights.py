"""Weights of the loss: by timestep, by pixel, and the thresholds of the huber losses. NumPy only, float32."""

import math
from dataclasses import dataclass

import numpy as np

from library.training.noise_schedule import TRAIN_TIMESTEPS, NoiseSchedule

SNR_LIMIT = np.float32(1000)  # the weights below (but not min-SNR) cut the SNR here, as the original does


@dataclass(frozen=True, kw_only=True)
class LossWeighting:
    """Options that weigh the loss by timestep; the fields are the flags."""

    v_parameterization: bool = False
    min_snr_gamma: float | None = None
    scale_v_pred_loss_like_noise_pred: bool = False
    v_pred_like_loss: float | None = None
    debiased_estimation_loss: bool = False


def loss_multipliers(schedule: NoiseSchedule, timesteps_B: np.ndarray, options: LossWeighting) -> np.ndarray:
    """Factor of each sample's mean loss by all options together, [B]."""
    snr_B = schedule.snr[timesteps_B]
    factor_B = np.ones_like(snr_B)
    if options.min_snr_gamma:
        factor_B *= min_snr_weights(snr_B, options.min_snr_gamma, options.v_parameterization)
    if options.scale_v_pred_loss_like_noise_pred:
        factor_B *= v_pred_scale(snr_B)
    if options.v_pred_like_loss:
        factor_B *= v_pred_like_factors(snr_B, options.v_pred_like_loss)
    if options.debiased_estimation_loss:
        factor_B *= debiased_weights(snr_B, options.v_parameterization)
    return factor_B


def mask_weights(masks_BHW: np.ndarray, latent_size: tuple[int, ...]) -> np.ndarray:
    """Weights [B, 1, height, width] of the latents' pixels: means of the image's pixels that they stand for.

    The image's sides are whole multiples of `latent_size` (height, width); torch's ``interpolate(mode="area")`` takes
    the same means then. They are not scaled to a mean of 1: a small mask gives a small loss, as in the original.
    """
    batch, rows, columns = masks_BHW.shape
    height, width = latent_size
    assert rows % height == 0 and columns % width == 0, f"masks {masks_BHW.shape} do not fit latents {latent_size}"
    squares = masks_BHW.reshape(batch, height, rows // height, width, columns // width)
    return squares.mean(axis=(2, 4), dtype=np.float32)[:, None]


def min_snr_weights(snr_B: np.ndarray, gamma: float, v_parameterization: bool) -> np.ndarray:
    """min(SNR, gamma) / SNR, for v-prediction min(SNR, gamma) / (SNR + 1). https://arxiv.org/abs/2303.09556"""
    cut_B = np.minimum(snr_B, np.float32(gamma))
    return cut_B / (snr_B + np.float32(1)) if v_parameterization else cut_B / snr_B


def v_pred_scale(snr_B: np.ndarray) -> np.ndarray:
    """SNR / (SNR + 1): what turns the loss of v into that of the noise."""
    cut_B = np.minimum(snr_B, SNR_LIMIT)
    return cut_B / (cut_B + np.float32(1))


def v_pred_like_factors(snr_B: np.ndarray, share: float) -> np.ndarray:
    """1 + share / `v_pred_scale`: adds to a noise prediction's loss a share of what v's would be."""
    return np.float32(1) + np.float32(share) / v_pred_scale(snr_B)


def debiased_weights(snr_B: np.ndarray, v_parameterization: bool) -> np.ndarray:
    """1 / sqrt(SNR), for v-prediction 1 / (SNR + 1). https://arxiv.org/abs/2310.08442"""
    cut_B = np.minimum(snr_B, SNR_LIMIT)
    return np.float32(1) / (cut_B + np.float32(1) if v_parameterization else np.sqrt(cut_B))


def huber_thresholds(
    schedule: NoiseSchedule, timesteps_B: np.ndarray, kind: str, huber_c: float, huber_scale: float = 1.0
) -> np.ndarray:
    """Where the huber and smooth_l1 losses turn from square to straight, per sample, [B].

    `kind` is --huber_schedule: ``constant``, ``exponential`` (from 1 down to huber_c), ``snr`` (huber_scale has no part
    in it, as in the original). Raises ValueError for others.
    """
    if kind == "constant":
        return np.full(len(timesteps_B), huber_c * huber_scale, np.float32)
    if kind == "exponential":
        decay = -math.log(huber_c) / TRAIN_TIMESTEPS
        return (np.exp(-decay * timesteps_B) * huber_scale).astype(np.float32)
    if kind == "snr":
        a_B = schedule.alphas_cumprod[timesteps_B].astype(np.float64)
        with np.errstate(divide="ignore"):  # pure noise: sigma is infinite, the threshold huber_c
            sigma_B = np.sqrt((1 - a_B) / a_B)
        return ((1 - huber_c) / (1 + sigma_B) ** 2 + huber_c).astype(np.float32)
    raise ValueError(f"--huber_schedule {kind}: allowed are constant, exponential, snr")
