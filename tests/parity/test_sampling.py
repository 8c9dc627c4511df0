"""Samplers against the recorded schedule and against a process whose solution is known, and pictures on disk."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from library.runs.sampler_sigma import Euler
from library.runs.samplers import ALIASES, LEAST_STEPS, MOST_STEPS, SAMPLERS, find_sampler
from library.runs.sampling import MAKERS, guided, make_sampler, sample_latents, save_picture
from library.training.noise_schedule import TRAIN_TIMESTEPS, make_noise_schedule

NOISY = ("euler_a", "ddpm", "dpm_2_a", "dpmpp_2m_sde")
DETERMINISTIC = tuple(name for name in SAMPLERS if name not in NOISY)
ENDS_AT_TIMESTEP_0 = ("ddim", "pndm", "dpmsolver")
"""These leave the noise of timestep 0 in the result, as they do in SDXL's own configuration."""
NOISE = np.random.default_rng(0).standard_normal((1, 4, 32, 32)).astype(np.float32)
SIGMAS = np.sqrt(1.0 / make_noise_schedule().alphas_cumprod.astype(np.float64) - 1.0)
"""Standard deviation of the noise beside unscaled latents, at each of the 1000 timesteps."""

Predict = Callable[[np.ndarray, float], np.ndarray]


def answer(denoise: Callable[[np.ndarray, float], np.ndarray], v_prediction: bool = False) -> Predict:
    """The prediction of a model that knows the clean latents: ``denoise(x, sigma)`` for x = clean + sigma * noise."""

    def predict(scaled: np.ndarray, timestep: float) -> np.ndarray:
        sigma = float(np.interp(timestep, np.arange(len(SIGMAS)), SIGMAS))
        root = np.sqrt(1.0 + sigma**2)
        x = scaled.astype(np.float64) * root
        clean = denoise(x, sigma)
        noise = (x - clean) / sigma
        return ((noise - sigma * clean) / root if v_prediction else noise).astype(np.float32)

    return predict


MEAN, SPREAD = 0.4, 0.5


def gaussian(x: np.ndarray, sigma: float) -> np.ndarray:
    """The best guess where clean latents are normal with that mean and spread."""
    return MEAN + SPREAD**2 / (SPREAD**2 + sigma**2) * (x - MEAN)


def test_euler_has_the_recorded_schedule(golden: Path) -> None:
    recorded = load_file(golden / "models.safetensors")
    sampler = Euler(make_noise_schedule(), len(recorded["sample.timesteps"]), v_prediction=False)
    # One float32 rounding in each of a thousand products.
    np.testing.assert_allclose(sampler.sigmas, recorded["sample.sigmas"], rtol=1e-5)
    np.testing.assert_allclose(sampler.timesteps, recorded["sample.timesteps"], rtol=1e-5)


def test_samplers_need_no_framework() -> None:
    code = "import sys, library.runs.sampling; print({'mindspore', 'mindone', 'scipy'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_both_tables_of_samplers_agree() -> None:
    assert set(MAKERS) == set(SAMPLERS)
    assert MOST_STEPS == TRAIN_TIMESTEPS


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("v_prediction", [False, True], ids=["epsilon", "v"])
def test_a_model_that_knows_the_picture_gives_the_picture(name: str, v_prediction: bool) -> None:
    picture = np.random.default_rng(1).standard_normal(NOISE.shape).astype(np.float32)
    steps = 9
    done = []
    latents = sample_latents(
        answer(lambda x, sigma: picture, v_prediction), NOISE, name, steps, 3, v_prediction,
        lambda now, total: done.append((now, total)),
    )  # fmt: skip
    # Float32 rounding, times sigma = 14.6 at the start; or the noise that is left by definition, within 5 deviations.
    assert latents.dtype == np.float32
    limit = 5 * SIGMAS[0] if name in ENDS_AT_TIMESTEP_0 else 1e-4
    assert np.abs(latents - picture).max() < limit
    total = done[-1][1]
    assert done == [(now, total) for now in range(total + 1)] and total >= steps


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 20, 999, MOST_STEPS])
def test_any_number_of_steps_gives_numbers(name: str, steps: int) -> None:
    if steps < LEAST_STEPS.get(name, 1):
        return
    asked = []

    def predict(scaled: np.ndarray, timestep: float) -> np.ndarray:
        asked.append(timestep)
        return answer(gaussian)(scaled, timestep)

    latents = sample_latents(predict, NOISE[..., :4, :4], name, steps, 0)
    assert np.isfinite(latents).all()
    assert all(0 <= timestep < TRAIN_TIMESTEPS for timestep in asked)
    calls = {"heun": 2 * steps - 1, "dpm_2": 2 * steps - 1, "dpm_2_a": 2 * steps - 1, "pndm": steps + 9}
    assert len(asked) == calls.get(name, steps)


@pytest.mark.parametrize("name", SAMPLERS)
def test_pure_noise_at_the_last_timestep(name: str) -> None:
    """The picture comes back from a v-prediction model of the schedule with zero terminal SNR."""
    alphas_cumprod = np.maximum(make_noise_schedule(True).alphas_cumprod, 2.0**-24).astype(np.float64)
    sigmas = np.sqrt(1.0 / alphas_cumprod - 1.0)
    picture = np.random.default_rng(1).standard_normal(NOISE.shape).astype(np.float32)

    def predict(scaled: np.ndarray, timestep: float) -> np.ndarray:
        alpha = 1.0 / np.sqrt(1.0 + np.interp(timestep, np.arange(TRAIN_TIMESTEPS), sigmas) ** 2)
        return ((alpha * scaled - picture) / np.sqrt(1.0 - alpha**2)).astype(np.float32)

    latents = sample_latents(predict, NOISE, name, 25, 3, v_prediction=True, zero_terminal_snr=True)
    assert make_sampler("euler", 25, zero_terminal_snr=True).init_noise_sigma == pytest.approx(4096, rel=1e-4)
    # Float32 rounding of sigma = 4096 times noise at the start.
    assert np.abs(latents - picture).max() < (5 * SIGMAS[0] if name in ENDS_AT_TIMESTEP_0 else 5e-3)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_samplers_solve_the_equation(name: str) -> None:
    """d x / d sigma = (x - gaussian(x)) / sigma has the solution (x - mean) ~ sqrt(spread^2 + sigma^2)."""
    first = make_sampler(name, 10).init_noise_sigma
    if first == 1.0:  # latents of variance 1
        first = np.sqrt(1.0 + SIGMAS[-1] ** 2)
    exact = MEAN + (NOISE * first - MEAN) * SPREAD / np.sqrt(SPREAD**2 + SIGMAS[-1] ** 2)
    errors = []
    for steps in (10, 40):
        latents = sample_latents(answer(gaussian), NOISE, name, steps, 0)
        errors.append(float(np.sqrt(np.mean((latents - exact) ** 2))) / SPREAD)
    # Order one in the step at least, until what float32 and the last timestep leave.
    assert errors[0] < 0.3
    assert errors[1] < max(0.4 * errors[0], 0.02)


@pytest.mark.parametrize("name", NOISY)
def test_noisy_samplers_draw_from_the_distribution(name: str) -> None:
    latents = sample_latents(answer(gaussian), NOISE, name, 40, 1)
    # 4096 values: the mean's own spread is 0.008. Forty steps of order one miss a tenth of the spread.
    assert abs(latents.mean() - MEAN) < 0.04
    assert abs(latents.std() / SPREAD - 1.0) < 0.15


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_seed_decides_what_is_added(name: str) -> None:
    one, again, other = (sample_latents(answer(gaussian), NOISE, name, 5, seed).tobytes() for seed in (1, 1, 2))
    assert one == again
    assert (one == other) == (name in DETERMINISTIC)


def test_added_noise_is_not_the_initial_noise() -> None:
    seed = 7
    initial = np.random.Generator(np.random.Philox(seed)).standard_normal(NOISE.shape, dtype=np.float32)
    # A model that sees no noise leaves what the sampler adds: two steps of euler_a add noise once.
    added = sample_latents(lambda scaled, timestep: np.zeros_like(scaled), np.zeros_like(NOISE), "euler_a", 2, seed)
    assert added.std() > 0.01
    assert abs(np.corrcoef(added.ravel(), initial.ravel())[0, 1]) < 0.1  # 4096 values: chance gives 0.016


@pytest.mark.parametrize("name", ALIASES)
def test_kohyas_names_are_the_same_samplers(name: str) -> None:
    assert find_sampler(name, 5) == ALIASES[name]
    other = sample_latents(answer(gaussian), NOISE, ALIASES[name], 4, 0)
    assert np.array_equal(sample_latents(answer(gaussian), NOISE, name, 4, 0), other)


@pytest.mark.parametrize(
    ("name", "steps", "message"),
    [
        ("euler_b", 5, "--scheduler euler_b: choose one of euler, euler_a, ddim, "),
        ("pndm", 3, "3 steps: --scheduler pndm takes at least 4"),
        ("euler", 0, "0 steps: --scheduler euler takes at least 1"),
        ("k_lms", 1001, "1001 steps: --scheduler k_lms takes at most 1000, one for each timestep"),
    ],
)
def test_what_is_not_served_is_refused_by_name(name: str, steps: int, message: str) -> None:
    with pytest.raises(ValueError) as error:
        sample_latents(answer(gaussian), NOISE, name, steps, 0)
    assert str(error.value).startswith(message)


def test_guidance() -> None:
    conditional, unconditional = np.array([3.0], np.float32), np.array([1.0], np.float32)
    assert guided(conditional, unconditional, 1.0) == conditional
    assert guided(conditional, unconditional, 7.5) == np.float32(16.0)


def test_pictures_keep_their_settings_and_are_not_overwritten(tmp_path: Path) -> None:
    image = np.array([[[-1.0, 0.0], [1.0, 2.0]]] * 3, np.float32)  # the last is out of range
    settings = "a caf\u00e9, \u732b\nSteps: 5, Seed: 42"
    first = save_picture(image, tmp_path, 3, 42, settings)
    second = save_picture(image, tmp_path, 3, 42, settings)
    assert (first.name, second.name) == ("image_003_42.png", "image_003_42-2.png")
    assert sorted(tmp_path.iterdir()) == sorted([first, second])
    with Image.open(first) as picture:
        assert picture.text["parameters"] == settings
        assert np.asarray(picture)[..., 0].tolist() == [[0, 128], [255, 255]]
