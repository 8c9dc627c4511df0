"""From noise to latents: a sampler around any prediction, and pictures with their settings on disk. No MindSpore."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from library.data.run_rng import RunRng
from library.files.whole_file import write_whole_path
from library.runs.sampler_base import Sampler
from library.runs.sampler_ddim import Ddim, Ddpm, Pndm
from library.runs.sampler_dpm_solver import DpmSolver2M, DpmSolverPP2M, DpmSolverPP2S
from library.runs.sampler_sigma import Dpm2, Dpm2Ancestral, Euler, EulerAncestral, Heun, Lms
from library.runs.samplers import find_sampler
from library.training.noise_schedule import NoiseSchedule, make_noise_schedule

Predict = Callable[[np.ndarray, float], np.ndarray]
"""(scaled latents [B, C, H, W], timestep) -> prediction with guidance applied."""

MAKERS: Mapping[str, Callable[[NoiseSchedule, int, bool], Sampler]] = MappingProxyType(
    {
        "euler": Euler,
        "euler_a": EulerAncestral,
        "ddim": Ddim,
        "ddpm": Ddpm,
        "pndm": Pndm,
        "lms": Lms,
        "heun": Heun,
        "dpm_2": Dpm2,
        "dpm_2_a": Dpm2Ancestral,
        "dpmsolver": DpmSolver2M,
        "dpmpp_2m": DpmSolverPP2M,
        "dpmpp_2m_karras": functools.partial(DpmSolverPP2M, karras=True),
        "dpmpp_2m_sde": functools.partial(DpmSolverPP2M, sde=True),
        "dpmpp_2s": DpmSolverPP2S,
    }
)
"""Name in ``samplers.SAMPLERS`` -> (noise schedule, steps, the model predicts the velocity) -> sampler."""


def make_sampler(name: str, steps: int, v_prediction: bool = False, zero_terminal_snr: bool = False) -> Sampler:
    """A sampler at its start.

    Args:
        name: one of ``samplers.SAMPLERS``, or an alias.
        steps: number of steps; some samplers ask the model more often.
        v_prediction: the model answers with the velocity.
        zero_terminal_snr: the model was trained with a schedule that ends in pure noise.

    Raises:
        ValueError: there is no such sampler, or not with so few or so many steps.
    """
    return MAKERS[find_sampler(name, steps)](make_noise_schedule(zero_terminal_snr), steps, v_prediction)


def sample_latents(
    predict: Predict,
    noise_BCHW: np.ndarray,
    scheduler: str,
    steps: int,
    seed: int,
    v_prediction: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    zero_terminal_snr: bool = False,
) -> np.ndarray:
    """Denoise; float32 [B, C, H, W].

    Args:
        predict: the model with guidance.
        noise_BCHW: standard normal; the sampler scales it.
        scheduler: a name of ``samplers.SAMPLERS``, or an alias.
        steps: number of steps.
        seed: of the noise that some samplers add on the way; a stream of its own, not that of the initial noise.
        v_prediction: the model answers with the velocity.
        progress: called with (model calls done, all) before each and after the last; some samplers make two per step.
        zero_terminal_snr: the model was trained with a schedule that ends in pure noise.
    """
    sampler = make_sampler(scheduler, steps, v_prediction, zero_terminal_snr)
    generator = RunRng(seed).numpy("sampler noise")
    latents = noise_BCHW.astype(np.float32) * sampler.init_noise_sigma
    calls = len(sampler.timesteps)
    for i, timestep in enumerate(sampler.timesteps):
        progress(i, calls)
        noise_pred = predict(sampler.scale_model_input(latents, i), float(timestep))
        latents = sampler.step(noise_pred.astype(np.float32), i, latents, generator)
    progress(calls, calls)
    return latents


def guided(conditional: np.ndarray, unconditional: np.ndarray, scale: float) -> np.ndarray:
    """Classifier-free guidance (Ho and Salimans 2022)."""
    return unconditional + np.float32(scale) * (conditional - unconditional)


def save_picture(image_CHW: np.ndarray, folder: Path, index: int, seed: int, settings: str) -> Path:
    """Write one picture of values in [-1, 1] as PNG with its settings in the text chunk ``parameters``.

    The name says the prompt's index and the seed; a picture that is there already is not overwritten.

    Raises:
        ValueError: the file cannot be written.
    """
    pixels = np.clip((image_CHW.transpose(1, 2, 0) + 1.0) * 127.5 + 0.5, 0, 255).astype(np.uint8)
    text = PngInfo()
    text.add_text("parameters", settings)
    path = folder / f"image_{index:03d}_{seed}.png"
    number = 1
    while path.exists():
        number += 1
        path = folder / f"image_{index:03d}_{seed}-{number}.png"
    write_whole_path(path, lambda part: Image.fromarray(pixels).save(part, format="PNG", pnginfo=text))
    return path
