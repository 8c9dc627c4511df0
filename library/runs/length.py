"""How long a run is."""

import math
from dataclasses import dataclass

from library.settings.counted import counted
from library.settings.flag_groups import OptimizerArgs, RunArgs


@dataclass(frozen=True)
class Length:
    """How long a run is."""

    batches_per_epoch: int
    steps_per_epoch: int
    total_steps: int
    """Optimizer steps."""
    total_epochs: int


def run_length(batches_per_epoch: int, optimizer: OptimizerArgs, run: RunArgs) -> Length:
    """Steps and epochs of a run; epochs, where given, decide. An epoch's last group of batches may be short."""
    per_epoch = math.ceil(batches_per_epoch / optimizer.gradient_accumulation_steps)
    total = per_epoch * run.max_train_epochs if run.max_train_epochs else run.max_train_steps
    return Length(batches_per_epoch, per_epoch, total, math.ceil(total / per_epoch))


def length_line(length: Length, seed: int) -> str:
    """Line for the log: how long the run is."""
    return (
        f"{counted(length.total_steps, 'step')} in {counted(length.total_epochs, 'epoch')} of "
        f"{counted(length.batches_per_epoch, 'batch', 'batches')}, seed {seed}"
    )
