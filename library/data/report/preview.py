"""The first samples of a run as pictures, exactly as the model is given them."""

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from library.data.batch import Batch
from library.data.dataset import TrainDataset
from library.files.whole_file import write_whole_path

SHOWN = 48
"""Samples that are shown of a run."""

NAME_LENGTH = 50
"""Letters of an image's name that a sample's file keeps; a letter may be 4 bytes, and a name 255."""


@dataclass(frozen=True)
class SeenSample:
    """One sample of the run as the model sees it."""

    number: int
    """Place in the run, from 0."""
    path: str
    picture: Image.Image
    """RGB, after resizing, crop and mirroring."""
    mask: Image.Image | None
    """Mode L, of the picture's size: weight of each pixel in the loss, 255 is 1; None when all are 1."""
    caption: str
    """After dropout, shuffle and wildcards, before it is cut to the token limit."""


def first_samples(dataset: TrainDataset, max_train_steps: int, count: int = SHOWN) -> Iterator[SeenSample]:
    """The first samples of the run's first epoch, in training order. Raises ValueError naming an unreadable image."""
    samples = (sample for batch in dataset.batches(1, 0, max_train_steps=max_train_steps) for sample in _samples(batch))
    for number, (path, picture, mask, caption) in enumerate(islice(samples, count)):
        yield SeenSample(number, path, picture, mask, caption)


def check_place(folder: Path, dataset: TrainDataset) -> None:
    """Raise ValueError where samples in `folder` would come among images that are trained, or replace them."""
    subsets = (subset for part in dataset.datasets for subset in part.config.subsets)
    named = {path for subset in subsets for path in (subset.image_dir, subset.conditioning_data_dir) if path}
    files = {path for image in dataset.images for path in (image.path, image.mask) if path}
    lying = {os.path.dirname(path) for file in files for path in (file, os.path.realpath(file))}
    place = Path(os.path.realpath(folder))
    for trained in sorted(named | lying):
        other = Path(os.path.realpath(trained))
        if place.is_relative_to(other) or other.is_relative_to(place):
            raise ValueError(
                f"--debug_dataset: samples would go to {str(folder)!r}, and images are trained from {trained!r}; "
                "choose an --output_dir that is neither in nor around the data"
            )


def write_samples(samples: Iterator[SeenSample], folder: Path) -> int:
    """Write every sample as `0000_name.png` with its caption in `0000_name.txt`; returns their number.

    A mask goes to `0000_name.mask.png`. The samples that an earlier run left in the folder are removed.

    Raises ValueError when the folder cannot be written to.
    """
    _remove_samples(folder)
    count = 0
    for sample in samples:
        stem = f"{sample.number:04d}_{os.path.splitext(os.path.basename(sample.path))[0][:NAME_LENGTH]}"
        write_whole_path(folder / f"{stem}.png", functools.partial(_save_picture, sample.picture))
        if sample.mask is not None:
            write_whole_path(folder / f"{stem}.mask.png", functools.partial(_save_picture, sample.mask))
        write_whole_path(folder / f"{stem}.txt", functools.partial(_save_text, sample.caption))
        count += 1
    return count


def _remove_samples(folder: Path) -> None:
    for path in folder.glob("[0-9][0-9][0-9][0-9]_*"):
        if path.suffix in (".png", ".txt"):
            try:
                path.unlink()
            except OSError as error:
                raise ValueError(f"{path}: cannot be removed: {error.strerror}") from error


def _save_picture(picture: Image.Image, path: Path) -> None:
    picture.save(path, compress_level=1)


def _save_text(text: str, path: Path) -> None:
    path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def _samples(batch: Batch) -> Iterator[tuple[str, Image.Image, Image.Image | None, str]]:
    """Path, picture, mask and caption of each sample."""
    assert batch.images_BCHW is not None, "samples are shown before latents are cached"
    for number, (key, pixels_CHW, caption) in enumerate(
        zip(batch.keys, batch.images_BCHW, batch.captions, strict=True)
    ):
        weights_HW = None if batch.masks_BHW is None else batch.masks_BHW[number]
        mask = None if weights_HW is None else Image.fromarray(np.rint(weights_HW * 255).astype(np.uint8))
        yield key, to_picture(pixels_CHW), mask, caption


def to_picture(pixels_CHW: np.ndarray) -> Image.Image:
    """An RGB picture from the model's float32 [3, H, W] in [-1, 1]."""
    levels = np.rint((pixels_CHW.transpose(1, 2, 0) + 1) * 127.5)
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))
