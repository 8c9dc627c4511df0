"""Noise and loss options: offsets and layers in the noise, weights of the loss over the timesteps. NumPy only.

Arrays are float32. All randomness comes from the generator that is passed in.
"""

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


def draw_timesteps(
    rng: np.random.Generator, count: int, min_timestep: int | None = None, max_timestep: int | None = None
) -> np.ndarray:
    """Timesteps from min_timestep (0) to below max_timestep (1000), int64 [count]; equal bounds give that timestep.

    Raises ValueError for bounds outside the schedule or in the wrong order.
    """
    low = 0 if min_timestep is None else min_timestep
    high = TRAIN_TIMESTEPS if max_timestep is None else max_timestep
    if not 0 <= low <= high <= TRAIN_TIMESTEPS or low == TRAIN_TIMESTEPS:
        raise ValueError(
            f"--min_timestep {low} --max_timestep {high}: allowed is 0 <= min_timestep <= max_timestep <= "
            f"{TRAIN_TIMESTEPS}, min_timestep below {TRAIN_TIMESTEPS}"
        )
    return rng.integers(low, max(high, low + 1), count)


def draw_strength(rng: np.random.Generator, strength: float, random_strength: bool) -> float:
    """The strength itself, or with `random_strength` one drawn evenly between 0 and it."""
    return rng.random() * strength if random_strength else strength


def apply_noise_offset(
    rng: np.random.Generator,
    latents_BCHW: np.ndarray,
    noise_BCHW: np.ndarray,
    noise_offset: float,
    adaptive_noise_scale: float | None = None,
) -> np.ndarray:
    """Noise plus one random number per sample and channel times `noise_offset`.

    `adaptive_noise_scale` times the absolute mean of the channel's latents is added to the offset, and what falls below
    0 is 0. https://www.crosslabs.org/blog/diffusion-with-offset-noise
    """
    offset_BC11 = np.full((*noise_BCHW.shape[:2], 1, 1), noise_offset, np.float32)
    if adaptive_noise_scale is not None:
        mean_BC11 = np.abs(latents_BCHW.mean(axis=(2, 3), keepdims=True))
        offset_BC11 = np.maximum(offset_BC11 + np.float32(adaptive_noise_scale) * mean_BC11, np.float32(0))
    return noise_BCHW + offset_BC11 * _normal(rng, offset_BC11.shape)


def apply_multires_noise(
    rng: np.random.Generator, noise_BCHW: np.ndarray, iterations: int, discount: float
) -> np.ndarray:
    """Noise plus layers of ever coarser noise, each `discount` times weaker, divided by its standard deviation.

    Layer i is smaller by r**i, r drawn anew from 2 to 4; after a layer with a side of 1 there are no more. The standard
    deviation is that of the whole array (ddof 1).
    https://wandb.ai/johnowhitaker/multires_noise/reports/Multi-Resolution-Noise-for-Diffusion-Model-Training--VmlldzozNjYyOTU2
    """
    batch, channels, height, width = noise_BCHW.shape
    total = noise_BCHW.copy()
    for i in range(iterations):
        shrink = (rng.random() * 2 + 2) ** i
        rows, columns = max(1, int(height / shrink)), max(1, int(width / shrink))
        layer = _normal(rng, (batch, channels, rows, columns))
        total += upsample_bilinear(layer, height, width) * np.float32(discount**i)
        if rows == 1 or columns == 1:
            break
    return total / total.std(ddof=1)


def apply_ip_noise(rng: np.random.Generator, noise_BCHW: np.ndarray, gamma: float) -> np.ndarray:
    """Noise for the UNet's input only, the target keeps the one given: noise + gamma * more noise.

    https://arxiv.org/abs/2301.11706
    """
    return noise_BCHW + np.float32(gamma) * _normal(rng, noise_BCHW.shape)


def upsample_bilinear(x_BCHW: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear resize as torch's ``interpolate(mode="bilinear", align_corners=False)`` without antialiasing."""
    rows, columns = _bilinear_matrix(x_BCHW.shape[2], height), _bilinear_matrix(x_BCHW.shape[3], width)
    return np.matmul(np.matmul(rows, x_BCHW), columns.T)


def _bilinear_matrix(inputs: int, outputs: int) -> np.ndarray:
    """[outputs, inputs]: each output pixel's centre falls between two inputs, and takes of both by distance."""
    source = np.maximum((np.arange(outputs, dtype=np.float32) + 0.5) * np.float32(inputs / outputs) - 0.5, 0)
    lower = np.minimum(source.astype(np.int64), inputs - 1)
    upper = np.minimum(lower + 1, inputs - 1)
    share = (source - lower).astype(np.float32)
    matrix = np.zeros((outputs, inputs), np.float32)
    index = np.arange(outputs)
    np.add.at(matrix, (index, lower), 1 - share)
    np.add.at(matrix, (index, upper), share)
    return matrix


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)
