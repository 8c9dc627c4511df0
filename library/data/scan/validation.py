"""Pictures held back from training, for a loss on what the network has not seen.

The share that is trained is the original's for the same validation_seed. The rest is held back: with kohya's
split_train_val the two shares may have a picture in common, and without a seed they are drawn apart and have many.
"""

import functools
import math
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from library.data.scan.scan import CaptionedImage, Findings, SubsetScan
from library.settings.config_util import DatasetConfig
from library.settings.counted import counted


@dataclass(frozen=True)
class HeldBack:
    """The scans of all data sets in two parts that share no picture."""

    training: list[list[SubsetScan]]
    """Per data set; every subset is there, with fewer pictures."""
    validation: list[list[SubsetScan]]
    """Per data set; subsets of which something is held back, each picture once."""


def split_positions(count: int, split: float, seed: int) -> tuple[list[int], list[int]]:
    """Numbers below `count` in two parts, in the order drawn: those trained and the share `split` held back.

    `split`: 0 to 1. Rounding is in favour of training: ceil(count * (1 - split)) are trained, as in the original.
    """
    order = list(range(count))
    random.Random(seed).shuffle(order)
    trained = math.ceil(count * (1.0 - split))
    return order[:trained], order[trained:]


def hold_back(
    configs: Sequence[DatasetConfig], scans: Sequence[Sequence[SubsetScan]], seed: int, findings: Findings
) -> HeldBack:
    """Split the pictures of every subset that is no regularisation subset.

    `seed` draws where a data set has no validation_seed. A picture held back anywhere is trained nowhere, also where
    another data set or subset has it too. How many are held back is told in `findings`; a data set that has nothing
    left to train is a problem.
    """
    validation = [
        _validation_part(config, subsets, seed) if config.validation_split > 0 else []
        for config, subsets in zip(configs, scans, strict=True)
    ]
    place: Callable[[Path], str] = functools.cache(os.path.realpath)
    held = {_identity(image, place) for part in validation for scan in part for image in scan.images}
    if not held:
        training = [list(subsets) for subsets in scans]
    else:
        training = [[_without(scan, held, place) for scan in subsets] for subsets in scans]
    for config, before, after in zip(configs, scans, training, strict=True):
        _tell(config, before, after, findings)
    return HeldBack(training, validation)


def _validation_part(config: DatasetConfig, subsets: Sequence[SubsetScan], seed: int) -> list[SubsetScan]:
    part = []
    for scan in subsets:
        if scan.config.is_reg:
            continue
        own_seed = seed if config.validation_seed is None else config.validation_seed
        _, positions = split_positions(len(scan.images), config.validation_split, own_seed)
        if positions:
            once = replace(scan.config, num_repeats=1)
            part.append(SubsetScan(once, [scan.images[position] for position in sorted(positions)]))
    return part


def _identity(image: CaptionedImage, place: Callable[[Path], str]) -> tuple[str, str]:
    """Folder and name of a picture, the same however the folder is written and whichever link leads to it."""
    path = Path(os.path.realpath(image.path)) if image.path.is_symlink() else image.path
    return place(path.parent), path.name


def _without(scan: SubsetScan, held: set[tuple[str, str]], place: Callable[[Path], str]) -> SubsetScan:
    return SubsetScan(scan.config, [image for image in scan.images if _identity(image, place) not in held])


def _tell(config: DatasetConfig, before: Sequence[SubsetScan], after: Sequence[SubsetScan], findings: Findings) -> None:
    """Note how many pictures are left out of training."""
    total, left = (sum(len(scan.images) for scan in scans if not scan.config.is_reg) for scans in (before, after))
    if total and not left:
        whose = f"validation_split = {config.validation_split:g}" if config.validation_split else "by another data set"
        findings.problems.append(
            f"{config.source}: {counted(total, 'picture is', 'pictures are')} held back for validation ({whose}) and "
            "none is left to train; lower validation_split"
        )
    elif config.validation_split > 0 or left < total:
        findings.notes.append(
            f"{config.source}: {total - left} of {counted(total, 'picture')} held back for validation "
            "(validation_split) and left out of training; no loss is computed on them yet"
        )
