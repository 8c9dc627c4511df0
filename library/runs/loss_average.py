"""The moving average of the loss that the progress bar shows."""


class LossAverage:
    """Mean of the last epoch's worth of losses: each position in the epoch counts with its newest loss."""

    def __init__(self) -> None:
        self._losses: list[float] = []
        self._total = 0.0

    def add(self, position: int, loss: float) -> None:
        """Take the loss of the batch at a position of its epoch (from 0)."""
        if position < len(self._losses):
            self._total += loss - self._losses[position]
            self._losses[position] = loss
        else:
            self._total += loss
            self._losses.append(loss)

    @property
    def value(self) -> float:
        """The mean, 0 before the first loss."""
        return self._total / len(self._losses) if self._losses else 0.0
