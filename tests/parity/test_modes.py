"""A step gives the same compiled and not, and it learns."""

import functools
import json

import numpy as np
import pytest

from library.settings.arguments import read_train_args
from tools.replay_recording import Outcome, Recording
from tools.replay_steps import prediction, run, set_up

TOLERANCE = 1e-5
"""Relative: the same float32 operations, but sums may be taken in another order."""
STEPS = 3
ARGV = "--network_module networks.lora --network_dim 4 --network_alpha 2 --learning_rate 1e-3 --network_train_unet_only"

pytestmark = pytest.mark.usefixtures("device")


def made_up_run(argv: str, steps: int = STEPS) -> Recording:
    """Random batches in the form of a recording, of the shapes that most recordings have (they share programs)."""
    rng = np.random.default_rng(8)
    latents = (steps, 2, 4, 16, 16)
    ids = rng.integers(0, 49407, (steps, 2, 1, 77))
    ids[..., 0], ids[..., 40:] = 49406, 49407
    tensors = {
        "in.latents": rng.standard_normal(latents, dtype=np.float32),
        "in.noise": rng.standard_normal(latents, dtype=np.float32),
        "in.timesteps": rng.integers(0, 1000, (steps, 2)),
        "in.input_ids1": ids,
        "in.input_ids2": ids,
        "in.size_ids": np.tile(np.float32([128, 128, 0, 0, 128, 128]), (steps, 2, 1)),
        "in.loss_weights": np.ones((steps, 2), np.float32),
    }
    return Recording(tuple(argv.split()), 1, 5, (), (), tensors)


@functools.lru_cache
def outcome(compiled: bool, more_argv: str = "") -> Outcome:
    recording = made_up_run(f"{ARGV} {more_argv}")
    return run(set_up(recording, read_train_args(recording.argv, require_paths=False), compiled))


def flat(gradients: dict) -> np.ndarray:
    return np.concatenate([gradient.ravel() for gradient in gradients.values()]).astype(np.float64)


def relative_error(value: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(value - expected) / np.linalg.norm(expected))


@pytest.mark.slow
def test_compiled_blocks_give_the_losses_of_single_operations() -> None:
    compiled, plain = outcome(True), outcome(False)
    np.testing.assert_allclose(compiled.losses_S, plain.losses_S, rtol=TOLERANCE)
    assert relative_error(flat(compiled.gradients), flat(plain.gradients)) < TOLERANCE
    assert len(set(plain.losses_S)) == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_recomputing_blocks_gives_the_same_gradients_as_keeping_their_products(share: float) -> None:
    kept = outcome(True)
    again = outcome(True, f"--gradient_checkpointing --gradient_checkpointing_keep={share}")
    np.testing.assert_allclose(again.losses_S, kept.losses_S, rtol=TOLERANCE)
    assert relative_error(flat(again.gradients), flat(kept.gradients)) < TOLERANCE


@pytest.mark.slow
def test_the_loss_of_a_fixed_batch_falls_by_half() -> None:
    """Stops as soon as it has; 200 steps are allowed."""
    recording = made_up_run(ARGV.replace("1e-3", "5e-3"), steps=1)
    replay = set_up(recording, read_train_args(recording.argv, require_paths=False), True)
    predict, inputs = prediction(replay, 0)
    losses = []
    for i in range(200):
        losses.append(replay.step.accumulate(predict, inputs.target_BCHW, inputs.weights_B1HW, i))
        if losses[-1] < losses[0] / 2:
            break
        replay.step.update(1.0)
    assert losses[-1] < losses[0] / 2, json.dumps(losses)
