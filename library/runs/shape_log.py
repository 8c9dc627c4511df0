"""Which shapes of batches a run has, and how long each takes when it first comes: its blocks are compiled then."""

import logging
import time

from library.data.batch import Batch
from library.data.dataset import TrainDataset
from library.runs.loop import Follower, Position
from library.settings.counted import counted
from library.training.step import StepResult

logger = logging.getLogger(__name__)

BatchShape = tuple[int, int, int]
"""Images, height, width in pixels."""


def batch_shapes(dataset: TrainDataset) -> set[BatchShape]:
    """All shapes that the run's batches have; the last batch of a bucket may be short."""
    shapes = set()
    for data in dataset.datasets:
        for bucket in data.buckets:
            width, height = bucket.resolution
            full, rest = divmod(len(bucket.samples), data.config.batch_size)
            shapes |= {(data.config.batch_size, height, width)} if full else set()
            shapes |= {(rest, height, width)} if rest else set()
    return shapes


class ShapeLog(Follower):
    """Logs the first step of each shape."""

    def __init__(self, dataset: TrainDataset) -> None:
        self._total = len(batch_shapes(dataset))
        self._seen: set[BatchShape] = set()
        self._begin = 0.0
        logger.info(
            "%s of batches: the first step of each takes longer, since its blocks are compiled then",
            counted(self._total, "shape"),
        )

    def before_batch(self, position: Position, batch: Batch) -> None:
        """Start the clock."""
        self._begin = time.perf_counter()

    def after_batch(self, position: Position, batch: Batch, result: StepResult) -> None:
        """Log the time that a new shape took."""
        height, width = (int(side) for side in batch.size_ids_B6[0, 4:])
        shape = len(batch.size_ids_B6), height, width
        if shape in self._seen:
            return
        self._seen.add(shape)
        logger.info(
            "shape %d of %d (%d x %d, batch of %d): first step %.1f s",
            *(len(self._seen), self._total, width, height, shape[0]),
            time.perf_counter() - self._begin,
        )
