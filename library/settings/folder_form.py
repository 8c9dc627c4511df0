"""Where the data sets of a run come from: a dataset file, folders named `10_sks dog`, or a metadata file."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from library.settings.config_util import DatasetConfig, dataset_configs, load_dataset_configs
from library.settings.counted import counted
from library.settings.problems import UsageError, raise_if_any
from library.settings.sizes import LATENT_PIXELS

EXAMPLE = "REPEATS_class, for example 10_sks dog"


def run_dataset_configs(
    defaults: Mapping[str, object],
    *,
    dataset_config: str = "",
    train_data_dir: str | None = None,
    reg_data_dir: str | None = None,
    in_json: str | None = None,
    masked_loss: bool = False,
    size_step: int = LATENT_PIXELS,
) -> tuple[DatasetConfig, ...]:
    """The data sets of a run, from the flags of these names; the dataset file wins, as in the original.

    `defaults`: the command line's fallbacks, see load_dataset_configs. `size_step`: see DatasetConfig. Raises
    UsageError that lists every problem.
    """
    if dataset_config:
        return load_dataset_configs(dataset_config, defaults, masked_loss=masked_loss, size_step=size_step)
    if in_json:
        subset = {"metadata_file": in_json} | ({"image_dir": train_data_dir} if train_data_dir else {})
        return _configs([subset], ["--in_json"], "--in_json", defaults, size_step)
    if train_data_dir:
        return _from_folders(train_data_dir, reg_data_dir, defaults, size_step)
    raise UsageError("no pictures are named; give --dataset_config, or --train_data_dir, or --in_json")


def _configs(
    subsets: list[dict[str, Any]], sources: list[str], flag: str, defaults: Mapping[str, object], size_step: int
) -> tuple[DatasetConfig, ...]:
    """One dataset with these subsets; `sources` say where each was found."""
    (config,) = dataset_configs({"datasets": [{"subsets": subsets}]}, flag, defaults, size_step=size_step)
    told = (replace(subset, source=source) for subset, source in zip(config.subsets, sources, strict=True))
    return (replace(config, source=flag, subsets=tuple(told)),)


def _from_folders(
    train_data_dir: str, reg_data_dir: str | None, defaults: Mapping[str, object], size_step: int
) -> tuple[DatasetConfig, ...]:
    """DreamBooth subsets from the folders inside `train_data_dir` and `reg_data_dir`, sorted by name."""
    subsets: list[dict[str, Any]] = []
    sources: list[str] = []
    notes: list[str] = []
    problems: list[str] = []
    for flag, parent in (("--train_data_dir", train_data_dir), ("--reg_data_dir", reg_data_dir)):
        if parent:
            found = _numbered_folders(flag, parent, notes, problems)
            subsets += [{**subset, "is_reg": flag == "--reg_data_dir"} for subset in found]
            sources += [f"{flag} {subset['image_dir']}" for subset in found]
    raise_if_any(problems, "the folders of pictures")
    (config,) = _configs(subsets, sources, "--train_data_dir", defaults, size_step)
    return (replace(config, notes=(*config.notes, *notes)),)


def _numbered_folders(flag: str, parent: str, notes: list[str], problems: list[str]) -> list[dict[str, Any]]:
    """Subsets for the folders in `parent` whose name begins with their repeats; the others are told in `notes`."""
    try:
        is_folder = {name: os.path.isdir(os.path.join(parent, name)) for name in sorted(os.listdir(parent))}
    except OSError as error:
        problems.append(f"{flag} {parent}: cannot be listed: {error.strerror} (looked for {Path(parent).absolute()})")
        return []
    subsets = []
    for name in (name for name, yes in is_folder.items() if yes):
        repeats, _, class_tokens = name.partition("_")
        try:
            subsets.append({
                "image_dir": str(Path(parent, name)), "num_repeats": int(repeats), "class_tokens": class_tokens,
            })  # fmt: skip
        except ValueError:
            notes.append(f"{flag}: folder {name!r} is left out, since its name does not begin with {EXAMPLE}")
    if not subsets:
        problems.append(
            f"{flag} {parent}: holds no folder named {EXAMPLE}; put the pictures into one, or name their folder in a "
            "dataset file (--dataset_config)"
        )
    elif files := list(is_folder.values()).count(False):
        notes.append(
            f"{flag}: {counted(files, 'file')} directly in {parent!r} left out; only its folders are looked into"
        )
    return subsets
