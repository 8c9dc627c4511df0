"""From noise to latents: mindone's samplers around any prediction, and pictures with their settings on disk."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from mindspore import Tensor
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from library.data.run_rng import RunRng
from library.device.mindone_import import diffusers_class
from library.files.whole_file import write_whole_path
from library.runs.samplers import find_sampler
from library.training.noise_schedule import BETA_END, BETA_START, TRAIN_TIMESTEPS

Predict = Callable[[np.ndarray, float], np.ndarray]
"""(scaled latents [B, C, H, W], timestep) -> prediction with guidance applied."""


def make_scheduler(name: str, steps: int, v_prediction: bool = False):  # type: ignore[no-untyped-def]
    """mindone's scheduler with its timesteps set.

    Raises:
        ValueError: there is no such sampler here, or not with so few steps.
    """
    sampler = find_sampler(name, steps)
    scheduler = diffusers_class(sampler.scheduler)(
        beta_start=BETA_START,
        beta_end=BETA_END,
        beta_schedule="scaled_linear",
        num_train_timesteps=TRAIN_TIMESTEPS,
        prediction_type="v_prediction" if v_prediction else "epsilon",
        **sampler.settings,
    )
    scheduler.set_timesteps(steps)
    return scheduler


def sample_latents(
    predict: Predict,
    noise_BCHW: np.ndarray,
    scheduler: str,
    steps: int,
    seed: int,
    v_prediction: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """Denoise.

    Args:
        predict: the model with guidance.
        noise_BCHW: standard normal; the sampler scales it.
        scheduler: a name of ``samplers.SAMPLERS``, or an alias.
        steps: number of steps.
        seed: of the noise that some samplers add on the way; a stream of its own, not that of the initial noise.
        v_prediction: the model answers with the velocity.
        progress: called with (model calls done, all) before each and after the last; some samplers make two per step.
    """
    sampler = make_scheduler(scheduler, steps, v_prediction)
    extra = {"generator": RunRng(seed).numpy("sampler noise")} if find_sampler(scheduler, steps).adds_noise else {}
    latents = Tensor(noise_BCHW.astype(np.float32) * np.float32(_number(sampler.init_noise_sigma)))
    timesteps = list(sampler.timesteps)
    for done, timestep in enumerate(timesteps):
        progress(done, len(timesteps))
        scaled = sampler.scale_model_input(latents, timestep).asnumpy()
        prediction = predict(scaled, _number(timestep))
        latents = sampler.step(Tensor(prediction), timestep, latents, **extra)[0]
    progress(len(timesteps), len(timesteps))
    return latents.asnumpy()


def guided(conditional: np.ndarray, unconditional: np.ndarray, scale: float) -> np.ndarray:
    """Classifier-free guidance (Ho and Salimans 2022)."""
    return unconditional + np.float32(scale) * (conditional - unconditional)


def _number(value: object) -> float:
    return float(value.asnumpy()) if isinstance(value, Tensor) else float(value)  # type: ignore[arg-type]


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
