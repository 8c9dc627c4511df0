"""Noise and timesteps by the original's options: offsets, coarser layers, input perturbation. NumPy only.

Arrays are float32. All randomness comes from the generator that is passed in.
"""

import numpy as np

from library.training.noise_schedule import TRAIN_TIMESTEPS


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
