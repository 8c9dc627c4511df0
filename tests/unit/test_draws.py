"""What is random in a step: each kind of number from a stream of its own, others in every batch."""

import numpy as np
import pytest

from library.data.batch import Posterior
from library.data.run_rng import RunRng
from library.settings.flag_groups import LossArgs
from library.training.diffusion import DiffusionInputs, RandomDraws
from library.training.noise_schedule import make_noise_schedule

SHAPE = (3, 4, 6, 5)
LATENTS = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
ONES = np.ones(3, np.float32)
SEED = 9


def draws(v_parameterization: bool = False, **loss: object) -> RandomDraws:
    schedule = make_noise_schedule(zero_terminal_snr=False)
    return RandomDraws(RunRng(SEED), schedule, LossArgs(**loss), v_parameterization)  # type: ignore[arg-type]


def inputs(index: int = 0, v_parameterization: bool = False, **loss: object) -> DiffusionInputs:
    return draws(v_parameterization, **loss).diffusion(index, LATENTS, ONES, None)


def own_noise(index: int) -> np.ndarray:
    return RunRng(SEED).numpy("noise", index).standard_normal(SHAPE, dtype=np.float32)


def own_times(index: int, low: int = 0, high: int = 1000) -> np.ndarray:
    return RunRng(SEED).numpy("timesteps", index).integers(low, high, len(LATENTS))


def mixed(latents: np.ndarray, noise: np.ndarray, times: np.ndarray) -> np.ndarray:
    """sqrt(a) x + sqrt(1 - a) noise, a the product of 1 - beta so far (Ho and others 2020, equation 4)."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    a = np.cumprod(1 - betas)[times].reshape(-1, 1, 1, 1)
    return np.sqrt(a) * latents + np.sqrt(1 - a) * noise


@pytest.mark.parametrize("index", [0, 1, 17])
def test_noise_and_timesteps_of_a_batch_are_its_own(index: int) -> None:
    found, noise, times = inputs(index), own_noise(index), own_times(index)
    np.testing.assert_array_equal(found.target_BCHW, noise)
    np.testing.assert_array_equal(found.timesteps_B, times)
    np.testing.assert_allclose(found.noisy_BCHW, mixed(LATENTS, noise, times), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.weights_B1HW, np.ones((3, 1, 1, 1), np.float32))


def test_batches_have_nothing_in_common() -> None:
    targets = [inputs(index).target_BCHW for index in range(4)]
    assert all(abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.2 for a in targets for b in targets if a is not b)
    assert len({tuple(inputs(index).timesteps_B) for index in range(4)}) == 4


@pytest.mark.parametrize(
    "loss",
    [
        {"noise_offset": 0.1},
        {"noise_offset": 0.1, "noise_offset_random_strength": True},
        {"multires_noise_iterations": 3},
        {"ip_noise_gamma": 0.1},
        {"ip_noise_gamma": 0.1, "ip_noise_gamma_random_strength": True},
    ],
    ids=str,
)
def test_options_of_the_noise_leave_the_timesteps_as_they_are(loss: dict) -> None:
    np.testing.assert_array_equal(inputs(3, **loss).timesteps_B, own_times(3))
    assert (inputs(3, **loss).noisy_BCHW != inputs(3).noisy_BCHW).any()


def test_bounds_of_the_timesteps() -> None:
    found = inputs(2, min_timestep=200, max_timestep=300)
    np.testing.assert_array_equal(found.timesteps_B, own_times(2, 200, 300))


def test_an_offset_is_in_the_input_and_in_the_target() -> None:
    """One number per picture and channel, the next that the noise's stream gives."""
    generator = RunRng(SEED).numpy("noise", 5)
    noise = generator.standard_normal(SHAPE, dtype=np.float32)
    noise = noise + 0.3 * generator.standard_normal((3, 4, 1, 1), dtype=np.float32)
    found = inputs(5, noise_offset=0.3)
    np.testing.assert_allclose(found.target_BCHW, noise, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.noisy_BCHW, mixed(LATENTS, noise, own_times(5)), rtol=1e-5, atol=2e-6)


def test_input_perturbation_is_in_the_input_alone() -> None:
    generator = RunRng(SEED).numpy("noise", 5)
    noise = generator.standard_normal(SHAPE, dtype=np.float32)
    perturbed = noise + 0.2 * generator.standard_normal(SHAPE, dtype=np.float32)
    found = inputs(5, ip_noise_gamma=0.2)
    np.testing.assert_array_equal(found.target_BCHW, noise)
    np.testing.assert_allclose(found.noisy_BCHW, mixed(LATENTS, perturbed, own_times(5)), rtol=1e-5, atol=2e-6)


def test_a_velocity_is_of_the_unperturbed_noise() -> None:
    """v = sqrt(a) noise - sqrt(1 - a) x (Salimans and Ho 2022, appendix D)."""
    found, noise, times = inputs(5, v_parameterization=True, ip_noise_gamma=0.2), own_noise(5), own_times(5)
    np.testing.assert_allclose(found.target_BCHW, mixed(noise, -LATENTS, times), rtol=1e-5, atol=2e-6)


def test_weights_of_samples_and_timesteps_multiply() -> None:
    weights = np.float32([1.0, 0.5, 2.0])
    plain = draws(min_snr_gamma=5.0).diffusion(1, LATENTS, ONES, None).weights_B1HW
    weighed = draws(min_snr_gamma=5.0).diffusion(1, LATENTS, weights, None).weights_B1HW
    np.testing.assert_allclose(weighed.ravel(), weights * plain.ravel(), rtol=1e-6)
    assert plain.min() < 1.0 == pytest.approx(plain.max())


def test_masks_weigh_pixels() -> None:
    masks = np.zeros((3, 48, 40), np.float32)
    masks[:, :24] = 1.0
    found = draws().diffusion(1, LATENTS, np.float32([1.0, 0.5, 2.0]), masks).weights_B1HW
    assert found.shape == (3, 1, 6, 5)
    np.testing.assert_array_equal(
        found[:, 0, :2], np.float32([1.0, 0.5, 2.0]).reshape(3, 1, 1).repeat(2, 1).repeat(5, 2)
    )
    assert not found[:, 0, 4:].any()


@pytest.mark.parametrize("index", [0, 3])
def test_latents_are_drawn_and_scaled(index: int) -> None:
    posterior = Posterior(LATENTS, np.full(SHAPE, 0.5, np.float16))
    eps = RunRng(SEED).numpy("latents", index).standard_normal(SHAPE, dtype=np.float32)
    found = draws().latents(index, posterior, 0.125)
    np.testing.assert_allclose(found, 0.125 * (LATENTS + 0.5 * eps), rtol=1e-6, atol=1e-7)
    assert (found != draws().latents(index + 1, posterior, 0.125)).any()
