"""From noise to latents: mindone's samplers around any prediction, and pictures with their settings on disk."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from mindspore import Tensor
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from library.device.mindone_import import diffusers_class
from library.files.whole_file import write_whole_path
from library.training.noise_schedule import BETA_END, BETA_START, TRAIN_TIMESTEPS

logger = logging.getLogger(__name__)

_SPECS: Mapping[str, tuple[str, Mapping[str, object]]] = MappingProxyType(
    {
        "euler": ("EulerDiscreteScheduler", {"timestep_spacing": "linspace"}),
        "euler_a": ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "linspace"}),
        "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
        "dpmpp_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
        "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        "dpmpp_2s": ("DPMSolverSinglestepScheduler", {"lower_order_final": True}),
        "heun": ("HeunDiscreteScheduler", {}),
        "lms": ("LMSDiscreteScheduler", {}),
        "dpm_2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    }
)
"""Sampler -> mindone's class and settings; the noise schedule is SDXL's in all of them."""
_ALIASES = MappingProxyType(
    {
        "k_euler": "euler",
        "k_euler_a": "euler_a",
        "k_lms": "lms",
        "k_dpm_2_a": "dpm_2_a",
        "dpmsolver++": "dpmpp_2m",
        "dpmsolver": "dpmpp_2m",
        "dpmsingle": "dpmpp_2s",
    }
)
"""kohya's other names."""
SCHEDULERS = (*_SPECS, *_ALIASES)
_WITH_GENERATOR = ("euler_a", "dpm_2_a")
"""Samplers that add noise on the way."""

Predict = Callable[[np.ndarray, float], np.ndarray]
"""(scaled latents [B, C, H, W], timestep) -> prediction with guidance applied."""


def make_scheduler(name: str, steps: int, v_prediction: bool = False):  # type: ignore[no-untyped-def]
    """mindone's scheduler with its timesteps set.

    Raises:
        ValueError: there is no such sampler here.
    """
    name = _ALIASES.get(name, name)
    if name not in _SPECS:
        raise ValueError(f"--scheduler {name}: choose one of {', '.join(SCHEDULERS)}")
    class_name, settings = _SPECS[name]
    scheduler = diffusers_class(class_name)(
        beta_start=BETA_START,
        beta_end=BETA_END,
        beta_schedule="scaled_linear",
        num_train_timesteps=TRAIN_TIMESTEPS,
        prediction_type="v_prediction" if v_prediction else "epsilon",
        **settings,
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
        scheduler: a name of ``SCHEDULERS``.
        steps: number of steps.
        seed: of the noise that ancestral samplers add.
        v_prediction: the model answers with the velocity.
        progress: called with (steps done, all) before each and after the last; some samplers ask the model twice a step.
    """
    sampler = make_scheduler(scheduler, steps, v_prediction)
    extra = {}
    if _ALIASES.get(scheduler, scheduler) in _WITH_GENERATOR:
        extra["generator"] = np.random.Generator(np.random.Philox(seed))
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
