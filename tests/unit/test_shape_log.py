"""The shapes that are announced are those that come."""

import logging
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from library.data.dataset import TrainDataset
from library.data.run_rng import RunRng
from library.families.sdxl.tokenizers import sdxl_tokenizers
from library.runs.loop import Position
from library.runs.shape_log import ShapeLog, batch_shapes
from library.settings.config_util import DatasetConfig, SubsetConfig
from library.training.step import StepResult


def make_dataset(folder: Path, batch_size: int) -> TrainDataset:
    draw = random.Random(5)
    for i in range(11):
        size = draw.choice([(64, 64), (64, 128), (128, 64)])
        Image.fromarray(np.full((*size, 3), 20 * i, np.uint8)).save(folder / f"{i}.png")
    config = DatasetConfig(
        subsets=(SubsetConfig(image_dir=str(folder), class_tokens="a cat", num_repeats=3),),
        kind="dreambooth",
        resolution=(96, 96),
        enable_bucket=True,
        min_bucket_reso=64,
        max_bucket_reso=128,
        bucket_reso_steps=32,
        batch_size=batch_size,
    )
    return TrainDataset([config], sdxl_tokenizers(), RunRng(3))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_announced_shapes_are_those_of_an_epoch(
    tmp_path: Path, batch_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = make_dataset(tmp_path, batch_size)
    with caplog.at_level(logging.INFO):
        log = ShapeLog(dataset)
        came = set()
        for batch in dataset.batches(1, 0):
            assert batch.images_BCHW is not None
            count, _, height, width = batch.images_BCHW.shape
            came.add((count, height, width))
            log.before_batch(Position(), batch)
            log.after_batch(Position(), batch, StepResult(0.0, True))
    assert came == batch_shapes(dataset)
    first_steps = [message for message in caplog.messages if "first step" in message and " of batches" not in message]
    assert len(first_steps) == len(came)
    assert first_steps[-1].startswith(f"shape {len(came)} of {len(came)} (")
