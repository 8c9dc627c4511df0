"""Our samplers against mindone's scheduler classes, which are ports of diffusers': the same latents at the end."""

import functools
from typing import Any

import numpy as np
import pytest
from mindspore import Tensor

from library.data.run_rng import RunRng
from library.runs.samplers import LEAST_STEPS, SAMPLERS
from library.runs.sampling import make_sampler, sample_latents
from library.training.noise_schedule import BETA_END, BETA_START, TRAIN_TIMESTEPS
from tools.mindone_on_cpu import diffusers_class

pytestmark = pytest.mark.usefixtures("device")

TOLERANCE = 1e-4
"""Relative to the largest latent. mindone forms coefficients in float32; where a step of sigma = 14.6 is divided by one
of 0.03 a rounding of 6e-8 becomes 6e-5, the most that was seen."""
TIMESTEP_TOLERANCE = 1e-3
"""Timesteps between two whole ones are found from float32 logarithms of sigma, which differ by 1e-6 a timestep."""

SETTINGS: dict[str, tuple[str, dict[str, object]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False, "steps_offset": 1}),
    "pndm": ("PNDMScheduler", {"set_alpha_to_one": False, "steps_offset": 1}),
    "lms": ("LMSDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm_2": ("KDPM2DiscreteScheduler", {}),
    "dpm_2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmsolver": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_2s": ("DPMSolverSinglestepScheduler", {"lower_order_final": True}),
}
NOISY = ("euler_a", "ddpm", "dpm_2_a", "dpmpp_2m_sde")
SEED = 3
NOISE = np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32)
MIX = 0.3 * np.random.default_rng(1).standard_normal((4, 4)).astype(np.float32)


def predict(scaled: np.ndarray, timestep: float) -> np.ndarray:
    """A fixed linear map that depends on the timestep."""
    mixed = np.einsum("oc,bchw->bohw", MIX, scaled) * np.float32(1.0 - timestep / 2000.0)
    return (mixed + np.float32(0.3) * scaled).astype(np.float32)


def mindones(name: str, v_prediction: bool, **more: object) -> Any:
    """mindone's scheduler with the noise schedule and the settings of Stable Diffusion."""
    class_name, settings = SETTINGS[name]
    return diffusers_class(class_name)(
        beta_start=BETA_START,
        beta_end=BETA_END,
        beta_schedule="scaled_linear",
        num_train_timesteps=TRAIN_TIMESTEPS,
        prediction_type="v_prediction" if v_prediction else "epsilon",
        **settings,
        **more,
    )


def previous_timestep(scheduler: Any, timestep: Tensor) -> Tensor:
    """DDPM's, which mindone finds with a function that a CPU lacks."""
    timesteps = [*scheduler.timesteps.asnumpy().tolist(), -1]
    return Tensor(timesteps[timesteps.index(int(timestep)) + 1])


def run_mindone(scheduler: Any, name: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(latents at the end, timesteps at which the model was asked)."""
    scheduler.set_timesteps(steps)
    if name == "dpm_2":  # the middle of the last step, exp((log 0 + log sigma) / 2), is NaN there
        scheduler.sigmas_interpol = Tensor(np.nan_to_num(scheduler.sigmas_interpol.asnumpy()))
    if name == "ddpm":
        scheduler.previous_timestep = functools.partial(previous_timestep, scheduler)
    extra = {"generator": RunRng(SEED).numpy("sampler noise")} if name in NOISY else {}
    latents = Tensor(NOISE * np.float32(float(scheduler.init_noise_sigma)))
    timesteps = scheduler.timesteps.asnumpy()
    for timestep in list(scheduler.timesteps):
        scaled = scheduler.scale_model_input(latents, timestep).asnumpy()
        latents = scheduler.step(Tensor(predict(scaled, float(timestep))), timestep, latents, **extra)[0]
    return latents.asnumpy(), timesteps


def assert_close(latents: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(latents - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 16])
@pytest.mark.parametrize("v_prediction", [False, True], ids=["epsilon", "v"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_latents_are_mindones(name: str, v_prediction: bool, steps: int) -> None:
    if steps < LEAST_STEPS.get(name, 1):
        return
    expected, timesteps = run_mindone(mindones(name, v_prediction), name, steps)
    np.testing.assert_allclose(make_sampler(name, steps).timesteps, timesteps, rtol=0, atol=TIMESTEP_TOLERANCE)
    assert_close(sample_latents(predict, NOISE, name, steps, SEED, v_prediction), expected)


@pytest.mark.parametrize("name", ["euler", "euler_a", "ddim", "dpmpp_2m"])
def test_the_latents_are_mindones_with_zero_terminal_snr(name: str) -> None:
    scheduler = mindones(name, v_prediction=True, rescale_betas_zero_snr=True)
    expected, _ = run_mindone(scheduler, name, 10)
    assert_close(sample_latents(predict, NOISE, name, 10, SEED, v_prediction=True, zero_terminal_snr=True), expected)
