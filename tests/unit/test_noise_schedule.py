"""The noise schedule against the recorded float64 tables and its own definitions."""

import json
from pathlib import Path

import numpy as np
import pytest

from library.training.noise_schedule import make_noise_schedule
from tools.table_checks_training import TABLE_CHECKS

SCHEDULE = make_noise_schedule()
TERMINAL = make_noise_schedule(zero_terminal_snr=True)


@pytest.mark.parametrize("table", ["noise_schedule_float64", "loss_weights"])
def test_recorded_tables(golden: Path, table: str) -> None:
    cases = json.loads((golden / "kohya_tables.json").read_text())[table]
    assert cases
    assert TABLE_CHECKS[table](cases) == []


def test_the_checks_notice_a_wrong_number(golden: Path) -> None:
    tables = json.loads((golden / "kohya_tables.json").read_text())
    tables["noise_schedule_float64"]["500"]["snr"] *= 1.0002
    tables["loss_weights"]["debiased eps"][3] *= 1.0002
    wrong = TABLE_CHECKS["noise_schedule_float64"](tables["noise_schedule_float64"])
    assert [line.split(":")[0] for line in wrong] == ["timestep 500 snr"]
    wrong = TABLE_CHECKS["loss_weights"](tables["loss_weights"])
    assert [line.split(":")[0] for line in wrong] == ["debiased eps"]


def test_every_timestep_is_close_to_float64() -> None:
    """float32 as in the reference: 1e-6 of the products; 3e-5 of the SNR, where 1 - alphas_cumprod is small."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas_cumprod = np.cumprod(1 - betas)
    np.testing.assert_allclose(SCHEDULE.betas, betas, rtol=3e-7)
    np.testing.assert_allclose(SCHEDULE.alphas_cumprod, alphas_cumprod, rtol=1e-6)
    np.testing.assert_allclose(SCHEDULE.snr, alphas_cumprod / (1 - alphas_cumprod), rtol=3e-5)
    for schedule in (SCHEDULE, TERMINAL):
        tables = (schedule.betas, schedule.alphas_cumprod, schedule.snr)
        assert {table.dtype for table in tables} == {np.dtype(np.float32)}
        assert {table.shape for table in tables} == {(1000,)}


def test_zero_terminal_snr_keeps_the_start_the_weights_and_nothing_at_the_end() -> None:
    assert TERMINAL.alphas_cumprod[-1] == 0
    assert TERMINAL.alphas_cumprod[0] == SCHEDULE.alphas_cumprod[0]
    assert np.all(np.diff(TERMINAL.alphas_cumprod) < 0)
    np.testing.assert_array_equal(TERMINAL.snr, SCHEDULE.snr)


def test_noised_latents_and_velocity() -> None:
    rng = np.random.default_rng(0)
    latents, noise = rng.standard_normal((2, 3, 4, 5, 6), dtype=np.float32)
    timesteps = np.array([0, 500, 999])
    noisy = TERMINAL.add_noise(latents, noise, timesteps)
    velocity = TERMINAL.velocity(latents, noise, timesteps)
    assert noisy.dtype == velocity.dtype == np.float32
    np.testing.assert_array_equal(noisy[2], noise[2])
    np.testing.assert_array_equal(velocity[2], -latents[2])
    a = TERMINAL.alphas_cumprod[500].astype(np.float64)
    np.testing.assert_allclose(noisy[1], np.sqrt(a) * latents[1] + np.sqrt(1 - a) * noise[1], rtol=0, atol=1e-6)
    # Noisy latents and velocity are a rotation of latents and noise, so that they give the latents back.
    signal, sigma = (c.reshape(3, 1, 1, 1) for c in TERMINAL.coefficients(timesteps))
    np.testing.assert_allclose(signal * noisy - sigma * velocity, latents, rtol=0, atol=1e-6)
