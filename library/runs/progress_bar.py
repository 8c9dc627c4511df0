"""The bar that shows how far a run is, with the loss and its moving average."""

from types import TracebackType

from tqdm import tqdm

from library.data.batch import Batch
from library.runs.loop import Follower, Position
from library.runs.loss_average import LossAverage
from library.training.step import StepResult


class ProgressBar(Follower):
    """Shown while it is entered."""

    def __init__(self, total_steps: int) -> None:
        self._bar = tqdm(total=total_steps, desc="steps", smoothing=0)
        self.average = LossAverage()

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()

    def after_batch(self, position: Position, batch: Batch, result: StepResult) -> None:
        """Count the loss."""
        self.average.add(position.batch - 1, result.loss)

    def after_step(self, position: Position, result: StepResult) -> None:
        """Move on."""
        self._bar.set_postfix(loss=f"{result.loss:.4f}", avr_loss=f"{self.average.value:.4f}", refresh=False)
        self._bar.update()
