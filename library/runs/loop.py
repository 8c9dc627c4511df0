"""The training loop: the one place where data, a family and a step meet."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from library.data.batch import Batch
from library.families.base import BaseModel, Family, StepOptions
from library.runs.length import Length
from library.training.diffusion import Draws
from library.training.step import StepResult, TrainStep


@dataclass(frozen=True)
class Position:
    """How far a run is."""

    epoch: int = 1
    """The one under way, from 1."""
    batch: int = 0
    """Batches done in it."""
    step: int = 0
    """Optimizer steps done in all."""
    samples: int = 0
    """Samples done in all."""


class Follower:
    """Something that is done as a run goes on; what a follower does not care about, it leaves as it is here."""

    def before_batch(self, position: Position, batch: Batch) -> None:
        """A batch is about to be computed."""

    def after_batch(self, position: Position, batch: Batch, result: StepResult) -> None:
        """A batch was computed; ``position`` counts it."""

    def after_step(self, position: Position, result: StepResult) -> None:
        """An optimizer step was done; ``position`` counts it."""

    def after_epoch(self, position: Position) -> None:
        """All batches of an epoch, or of the run, are done."""

    def after_run(self, position: Position) -> None:
        """The run is done."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """All that the loop needs."""

    batches: Callable[[Position], Iterator[Batch]]
    """The batches of an epoch, from a position on."""
    length: Length
    family: Family
    model: BaseModel
    draws: Draws
    step_options: StepOptions
    step: TrainStep
    lr_factor: Callable[[int], float]
    """The schedule: optimizer steps done -> factor on the learning rates for the next."""


def train(
    training: Training, followers: Sequence[Follower], is_asked_to_stop: Callable[[], bool] = lambda: False
) -> Position:
    """Train to the end, or until asked to stop after a step; returns how far it came.

    Args:
        training: what is trained, on what.
        followers: what is done before and after a batch, after a step, an epoch and the run, in order.
        is_asked_to_stop: asked after each optimizer step.

    Raises:
        ValueError: the loss is not a number; names the batch's pictures.
    """
    total_steps, position = training.length.total_steps, Position()
    while position.step < total_steps:
        for batch in training.batches(position):
            for follower in followers:
                follower.before_batch(position, batch)
            result = _train_on(training, position, batch)
            position = _moved(position, batch, result)
            for follower in followers:
                follower.after_batch(position, batch, result)
            if result.has_updated:
                for follower in followers:
                    follower.after_step(position, result)
                if position.step == total_steps:
                    break
                if is_asked_to_stop():
                    return position
        for follower in followers:
            follower.after_epoch(position)
        if position.step < total_steps:
            position = replace(position, epoch=position.epoch + 1, batch=0)
    for follower in followers:
        follower.after_run(position)
    return position


def _train_on(training: Training, position: Position, batch: Batch) -> StepResult:
    """Forward and backward of one batch, and the update if it is the last that this waits for."""
    inputs = training.family.step_inputs(training.model, batch, training.draws, training.step_options)
    ends_epoch = position.batch + 1 == training.length.batches_per_epoch
    try:
        return training.step(inputs, training.lr_factor(position.step), ends_epoch)
    except FloatingPointError as error:
        raise ValueError(
            f"batch {batch.index}: {error}, training stops and files saved before stay as they are. Its images: "
            f"{', '.join(batch.keys)}. Lower --learning_rate, or look at these images"
        ) from error


def _moved(position: Position, batch: Batch, result: StepResult) -> Position:
    """The position after a batch."""
    return replace(
        position,
        batch=position.batch + 1,
        step=position.step + result.has_updated,
        samples=position.samples + len(batch.keys),
    )
