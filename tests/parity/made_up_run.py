"""A training run on random batches, in the form of a recording, for tests that compare ways of computing."""

import numpy as np

from library.device.profile import Device
from library.settings.arguments import read_train_args
from tools.replay_recording import Outcome, Recording
from tools.replay_steps import run, set_up

STEPS = 3
ARGV = "--network_module networks.lora --network_dim 4 --network_alpha 2 --learning_rate 1e-3 --network_train_unet_only"


def made_up_run(argv: str, steps: int = STEPS) -> Recording:
    """Random batches of the shapes that most recordings have (they share programs)."""
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


def outcome_of(device: Device, more_argv: str = "", steps: int = STEPS) -> Outcome:
    """What the run gives on a device."""
    recording = made_up_run(f"{ARGV} {more_argv}", steps)
    return run(set_up(recording, read_train_args(recording.argv, require_paths=False), device))


def flat(tensors: dict[str, np.ndarray]) -> np.ndarray:
    """All values in float64."""
    return np.concatenate([tensor.ravel() for tensor in tensors.values()]).astype(np.float64)


def relative_error(value: np.ndarray, expected: np.ndarray) -> float:
    """L2 norm of the difference over that of what is expected."""
    return float(np.linalg.norm(value - expected) / np.linalg.norm(expected))
