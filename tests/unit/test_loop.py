"""The loop: what is called when, at which position. Data, model and step are stand-ins that note their calls."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from library.data.batch import Batch
from library.families.base import StepOptions
from library.runs.length import Length, run_length
from library.runs.loop import Follower, Position, Training, train
from library.runs.loss_average import LossAverage
from library.runs.progress_bar import ProgressBar
from library.settings.flag_groups import OptimizerArgs, RunArgs
from library.training.step import StepResult

BATCH_SIZES = (2, 2, 1)
"""Samples of an epoch's batches, unless a test says otherwise."""


def make_batch(index: int, samples: int) -> Batch:
    return Batch(
        images_BCHW=None,
        latents=None,
        token_ids=(),
        token_weights_BNT=None,
        text=None,
        size_ids_B6=np.zeros((samples, 6), np.float32),
        loss_weights_B=np.ones(samples, np.float32),
        masks_BHW=None,
        captions=("",) * samples,
        keys=tuple(f"{index}/{i}.png" for i in range(samples)),
        index=index,
    )


@dataclass
class _Stage:
    """Stands for the data, the family and the step of a run, and remembers how they were used."""

    accumulated: int
    sizes: tuple[int, ...]
    breaks_at: int = -1
    """Number of the batch whose loss is not a number."""
    asked: list[Position] = field(default_factory=list)
    """Where batches were asked from."""
    trained: list[tuple[int, float, bool]] = field(default_factory=list)
    """(batch, the schedule's factor, whether it was said to end its epoch) of each batch."""
    taken: list[int] = field(default_factory=list)
    """Batches that were taken from the data."""
    pending: int = 0

    def batches(self, position: Position) -> Iterator[Batch]:
        self.asked.append(position)
        assert len(self.asked) < 20, "a run of a few steps asks for epochs without end"
        first = (position.epoch - 1) * len(self.sizes)
        for i, samples in list(enumerate(self.sizes))[position.batch :]:
            self.taken.append(first + i)
            yield make_batch(first + i, samples)

    def step_inputs(self, model: Any, batch: Batch, draws: Any, options: StepOptions) -> Any:
        return model, batch.index, draws, options

    def __call__(self, inputs: Any, lr_factor: float, ends_epoch: bool = False) -> StepResult:
        """An update after so many batches, or at the epoch's end, as TrainStep promises."""
        model, index, draws, options = inputs
        assert (model, draws, options) == ("model", "draws", "options")
        if index == self.breaks_at:
            raise FloatingPointError("the loss is nan")
        self.trained.append((index, lr_factor, ends_epoch))
        self.pending += 1
        updates = ends_epoch or self.pending == self.accumulated
        self.pending = 0 if updates else self.pending
        return StepResult(100.0 + index, updates)


class _Diary(Follower):
    """Writes down all that it is told; shares its pages with others."""

    def __init__(self, name: str, pages: list[tuple[Any, ...]]) -> None:
        self.name, self.pages = name, pages

    def before_batch(self, position: Position, batch: Batch) -> None:
        self.pages.append((self.name, "before", batch.index, position))

    def after_batch(self, position: Position, batch: Batch, result: StepResult) -> None:
        assert result.loss == 100.0 + batch.index
        self.pages.append((self.name, "batch", batch.index, position))

    def after_step(self, position: Position, result: StepResult) -> None:
        self.pages.append((self.name, "step", position.step, position))

    def after_epoch(self, position: Position) -> None:
        self.pages.append((self.name, "epoch", position.epoch, position))

    def after_run(self, position: Position) -> None:
        self.pages.append((self.name, "run", position.step, position))


def make_training(stage: _Stage, total_steps: int, lr_factor: Callable[[int], float] = float) -> Training:
    steps = -(-len(stage.sizes) // stage.accumulated)
    return Training(
        batches=stage.batches,
        length=Length(len(stage.sizes), steps, total_steps, -(-total_steps // steps)),
        family=stage,  # type: ignore[arg-type]
        model="model",  # type: ignore[arg-type]
        draws="draws",  # type: ignore[arg-type]
        step_options="options",  # type: ignore[arg-type]
        step=stage,  # type: ignore[arg-type]
        lr_factor=lr_factor,
    )


def run(
    total_steps: int, accumulated: int = 1, sizes: tuple[int, ...] = BATCH_SIZES, stop_after: int = 0
) -> tuple[_Stage, list[tuple[Any, ...]], Position]:
    """Train with two followers; ``stop_after``: ask to stop as soon as so many steps are done."""
    stage, pages = _Stage(accumulated, sizes), []
    followers = [_Diary("a", pages), _Diary("b", pages)]

    def is_asked() -> bool:
        return bool(stop_after) and sum(page[:2] == ("b", "step") for page in pages) >= stop_after

    return stage, pages, train(make_training(stage, total_steps), followers, is_asked)


def of(pages: list[tuple[Any, ...]], what: str) -> list[tuple[Any, ...]]:
    return [page[2:] for page in pages if page[:2] == ("a", what)]


def test_followers_are_told_in_order_and_with_what_is_done_by_then() -> None:
    _, pages, last = run(total_steps=2, accumulated=2)
    expected = [
        ("before", 0, Position(1, 0, 0, 0)),
        ("batch", 0, Position(1, 1, 0, 2)),
        ("before", 1, Position(1, 1, 0, 2)),
        ("batch", 1, Position(1, 2, 1, 4)),
        ("step", 1, Position(1, 2, 1, 4)),
        ("before", 2, Position(1, 2, 1, 4)),
        ("batch", 2, Position(1, 3, 2, 5)),
        ("step", 2, Position(1, 3, 2, 5)),
        ("epoch", 1, Position(1, 3, 2, 5)),
        ("run", 2, Position(1, 3, 2, 5)),
    ]
    assert pages == [(name, *told) for told in expected for name in "ab"]
    assert last == Position(1, 3, 2, 5)


def test_positions_count_on_over_epochs() -> None:
    stage, pages, last = run(total_steps=9)
    assert stage.asked == [Position(1, 0, 0, 0), Position(2, 0, 3, 5), Position(3, 0, 6, 10)]
    assert of(pages, "epoch") == [(epoch, Position(epoch, 3, 3 * epoch, 5 * epoch)) for epoch in (1, 2, 3)]
    assert [batch for batch, _, _ in stage.trained] == list(range(9))
    assert last == Position(3, 3, 9, 15)


@pytest.mark.parametrize("accumulated", [1, 2, 5])
def test_an_epochs_last_batch_is_said_to_end_it(accumulated: int) -> None:
    stage, _, last = run(total_steps=2 * -(-3 // accumulated), accumulated=accumulated)
    assert [batch for batch, _, ends_epoch in stage.trained if ends_epoch] == [2, 5]
    assert last.epoch == 2


def test_the_schedule_is_asked_with_the_number_of_steps_done() -> None:
    """The first step has number 0; all batches of a step have its factor."""
    stage, _, _ = run(total_steps=4, accumulated=2)
    assert [(batch, factor) for batch, factor, _ in stage.trained] == [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 3)]


def test_the_run_ends_with_its_last_step_in_the_middle_of_an_epoch() -> None:
    stage, pages, last = run(total_steps=4)
    assert last == Position(2, 1, 4, 7)
    assert stage.taken == [0, 1, 2, 3], "no batch is made that is not trained"
    assert of(pages, "epoch") == [(1, Position(1, 3, 3, 5)), (2, Position(2, 1, 4, 7))]
    assert of(pages, "run") == [(4, last)]


def test_a_last_step_that_ends_an_epoch_begins_no_other() -> None:
    stage, pages, last = run(total_steps=3)
    assert (last.epoch, len(stage.asked)) == (1, 1)
    assert [told for told, _ in of(pages, "epoch")] == [1]


def test_asked_to_stop_it_ends_after_the_step_and_leaves_the_end_to_the_caller() -> None:
    stage, pages, last = run(total_steps=9, accumulated=2, stop_after=1)
    assert last == Position(1, 2, 1, 4)
    assert stage.taken == [0, 1], "both batches of the step, and no more"
    assert of(pages, "epoch") == of(pages, "run") == []


def test_asked_to_stop_at_the_last_step_the_run_ends_as_ever() -> None:
    _, pages, last = run(total_steps=3, stop_after=3)
    assert last.step == 3
    assert of(pages, "run") == [(3, last)]


def test_a_loss_that_is_not_a_number_names_the_batch_and_its_pictures() -> None:
    stage, pages = _Stage(1, BATCH_SIZES, breaks_at=4), []
    message = r"batch 4: the loss is nan, .*Its images: 4/0\.png, 4/1\.png\. Lower --learning_rate"
    with pytest.raises(ValueError, match=message):
        train(make_training(stage, 9), [_Diary("a", pages)])
    assert of(pages, "step")[-1][1].step == 4
    assert of(pages, "run") == []


def test_a_follower_need_not_care() -> None:
    """A follower without any of the methods of its own is told everything and does nothing."""
    stage = _Stage(1, BATCH_SIZES)
    assert train(make_training(stage, 4), [Follower()]).step == 4


@pytest.mark.parametrize(
    ("batches", "accumulated", "run_args", "expected"),
    [
        (7, 1, RunArgs(max_train_steps=10), Length(7, 7, 10, 2)),
        (7, 2, RunArgs(max_train_steps=10), Length(7, 4, 10, 3)),
        (7, 2, RunArgs(max_train_steps=10, max_train_epochs=2), Length(7, 4, 8, 2)),
        (2, 5, RunArgs(max_train_steps=3), Length(2, 1, 3, 3)),
        (4, 2, RunArgs(max_train_epochs=3), Length(4, 2, 6, 3)),
    ],
)
def test_how_long_a_run_is(batches: int, accumulated: int, run_args: RunArgs, expected: Length) -> None:
    """Epochs decide where they are given; an epoch's last group of batches may be short."""
    optimizer = dataclasses.replace(OptimizerArgs(), gradient_accumulation_steps=accumulated)
    assert run_length(batches, optimizer, run_args) == expected


def test_the_average_is_of_the_newest_loss_at_each_place_of_the_epoch() -> None:
    average = LossAverage()
    assert average.value == 0.0
    shown = []
    for i, loss in enumerate((1.0, 3.0, 8.0, 4.0, 6.0, 2.0, 0.0)):
        average.add(i % 3, loss)
        shown.append(average.value)
    assert shown == pytest.approx([1.0, 2.0, 4.0, 5.0, 6.0, 4.0, 8.0 / 3.0])


def test_the_bar_shows_the_average_of_the_last_epochs_worth_of_losses() -> None:
    stage = _Stage(1, BATCH_SIZES)
    with ProgressBar(7) as bar:
        train(make_training(stage, 7), [bar])
    assert bar.average.value == pytest.approx((104.0 + 105.0 + 106.0) / 3)
