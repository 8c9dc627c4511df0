"""A made-up training run on the tiny model: random batches in the form of a recording, and set up to be run."""

from dataclasses import replace
from typing import Any

import numpy as np

from library.device.profile import CPU, Device
from library.runs.loop import Position
from library.settings.arguments import read_train_args
from library.training.step import StepInputs
from tools.replay_recording import Recording
from tools.replay_steps import Replay, set_up

ARGV = "--network_module networks.lora --network_dim 4 --network_alpha 2 --learning_rate 1e-3 --network_train_unet_only"
STEPS = 3


def made_up_run(argv: str = ARGV, steps: int = STEPS) -> Recording:
    """Of the shapes that most recordings have, so that they share programs."""
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


def ready(argv: str = ARGV, steps: int = STEPS, compiled: bool = False) -> Replay:
    """A made-up run, set up."""
    recording = made_up_run(argv, steps)
    args = read_train_args(recording.argv, require_paths=False)
    return set_up(recording, args, Device(CPU, compiled=compiled))


def first_inputs(replay: Replay, **changes: Any) -> StepInputs:
    """What the step takes of a run's first batch, of which some fields may be changed."""
    training = replay.training
    batch = replace(next(training.batches(Position())), **changes)
    return training.family.step_inputs(training.model, batch, training.draws, training.step_options)
