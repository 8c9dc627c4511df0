"""A dataset file (TOML or JSON) as typed dataset and subset settings.

A value is looked up in the subset, its dataset, [general], the command line, and is else the default below.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from library.settings.dataset_check import Checker, Table
from library.settings.dataset_keys import DATASET, GENERAL, SUBSET, Kind
from library.settings.problems import raise_if_any
from library.settings.sizes import LATENT_PIXELS
from library.settings.table_file import read_table

BUCKET_KEYS = ("bucket_reso_steps", "min_bucket_reso", "max_bucket_reso")
SIZE_KEYS = frozenset({"resolution", "enable_bucket", "bucket_no_upscale", *BUCKET_KEYS})
REARRANGING_KEYS = ("shuffle_caption", "token_warmup_step", "caption_tag_dropout_rate")
"""Keys that take captions apart into tags."""


@dataclass(frozen=True, kw_only=True)
class SubsetConfig:
    """One folder of pictures (or one metadata file) and how its captions and pictures are varied."""

    image_dir: str | None = None
    """Folder of pictures; may be None only with `metadata_file`."""
    metadata_file: str | None = None
    """JSON that names pictures and their captions; None for DreamBooth subsets."""
    source: str = ""
    """Where the subset was written, for messages: `data.toml [[datasets]] 1 [[subsets]] 2`."""
    num_repeats: int = 1
    """How often a picture appears in one epoch; below 1 the subset is to be dropped, with a line saying so."""
    shuffle_caption: bool = False
    """Shuffle the tags after the kept ones."""
    caption_separator: str = ","
    """Text between two tags."""
    keep_tokens: int = 0
    """Number of tags at the start that are neither shuffled nor dropped."""
    keep_tokens_separator: str = ""
    """Text that ends the kept part; empty is none."""
    secondary_separator: str | None = None
    """Text replaced by `caption_separator` after shuffling."""
    enable_wildcard: bool = False
    """Read {a|b} as a choice and draw one line of several."""
    flip_aug: bool = False
    """Mirror half of the samples."""
    random_crop: bool = False
    """Crop at a random place instead of the centre."""
    caption_prefix: str | None = None
    """Text before every caption."""
    caption_suffix: str | None = None
    """Text after every caption."""
    caption_dropout_rate: float = 0.0
    """Chance of an empty caption."""
    caption_dropout_every_n_epochs: int = 0
    """Every n-th epoch has empty captions; 0 is never."""
    caption_tag_dropout_rate: float = 0.0
    """Chance of leaving out one tag."""
    token_warmup_min: int = 1
    """Tags at the start of token warmup."""
    token_warmup_step: float = 0
    """Step at which all tags are in use; below 1 a part of all steps; 0 is off."""
    resize_interpolation: str | None = None
    """Resize filter by name; None: area when both sides shrink, else lanczos."""
    is_reg: bool = False
    """Regularisation pictures (DreamBooth)."""
    class_tokens: str | None = None
    """Caption of pictures that have no caption file (DreamBooth)."""
    caption_extension: str = ".caption"
    """Ending of caption files, with its dot (folders)."""
    color_aug: bool = False
    """Vary hue or brightness of some samples."""
    face_crop_aug_range: tuple[float, float] | None = None
    """Least and greatest size of a crop around a face, relative to the face; None is off. Needs file names that say
    where the face is (`..._centerx_centery_width_height.png`)."""
    alpha_mask: bool = False
    """The picture's transparency is the mask of its loss."""
    conditioning_data_dir: str | None = None
    """Folder of masks for the loss, one for each picture (masked)."""
    cache_info: bool = False
    """Asks the original for a file with sizes and captions (folders)."""
    custom_attributes: Mapping[str, object] = field(default_factory=dict)
    """Whatever else a file says about the subset."""


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Subsets that share batch size, resolution and buckets."""

    subsets: tuple[SubsetConfig, ...]
    """In the file's order."""
    kind: Kind
    """finetuning when the subsets have metadata files, masked when they have folders of masks."""
    source: str = ""
    """Where the dataset was written, for messages: `data.toml [[datasets]] 1`."""
    batch_size: int = 1
    """Pictures in a batch."""
    resolution: tuple[int, int]
    """Width, height in pixels; with buckets their area."""
    enable_bucket: bool = False
    """Train each picture near its own aspect ratio."""
    min_bucket_reso: int = 256
    """Shortest bucket side in pixels, not rounded to the steps yet."""
    max_bucket_reso: int = 1024
    """Longest bucket side in pixels, not rounded to the steps yet."""
    bucket_reso_steps: int = 64
    """Bucket sides are multiples of this, in pixels."""
    bucket_no_upscale: bool = False
    """Make buckets from the pictures' own sizes; min and max are not used."""
    resize_interpolation: str | None = None
    """Resize filter of the dataset; the subsets carry their own, this one filled in."""
    max_token_length: int | None = None
    """Caption tokens: None (75), 150 or 225. From the command line only."""
    prior_loss_weight: float = 1.0
    """Loss weight of regularisation pictures. From the command line only."""
    validation_split: float = 0.0
    """Part of each subset's pictures, 0 to 1, that is held back from training."""
    validation_seed: int | None = None
    """Draws the pictures held back; None takes the run's seed."""
    network_multiplier: float = 1.0
    """Without effect, as in the original."""
    size_step: int = LATENT_PIXELS
    """Sides of pictures are multiples of this, in pixels, as the model's family needs it."""
    notes: tuple[str, ...] = ()
    """What a user should know about the settings, one line each, for the log."""


SUBSET_FIELDS = frozenset(each.name for each in fields(SubsetConfig)) - {"source"}
DATASET_FIELDS = frozenset(each.name for each in fields(DatasetConfig)) - {
    "source",
    "subsets",
    "kind",
    "size_step",
    "notes",
}


def load_dataset_configs(
    path: str | Path, defaults: Mapping[str, object], *, masked_loss: bool = False, size_step: int = LATENT_PIXELS
) -> tuple[DatasetConfig, ...]:
    """Read a dataset file; `defaults` are the command line's fallbacks under the file's key names, None meaning unset.

    Paths inside stay as written (relative to the working folder, as in the original). A file without datasets gives an
    empty tuple. Raises UsageError (a ValueError) that lists every problem with its place and what is allowed.
    """
    return dataset_configs(read_table(path), Path(path).name, defaults, masked_loss=masked_loss, size_step=size_step)


def dataset_configs(
    table: Mapping[str, object],
    name: str,
    defaults: Mapping[str, object],
    *,
    masked_loss: bool = False,
    size_step: int = LATENT_PIXELS,
) -> tuple[DatasetConfig, ...]:
    """Like load_dataset_configs for a table already read; `name` stands for the file in messages."""
    strangers = set(defaults) - SUBSET_FIELDS - DATASET_FIELDS
    assert not strangers, f"no keys of a dataset file: {sorted(strangers)}"
    check = Checker(name)
    check.unknown(table, ("general", "datasets"), name)
    general = check.values(check.table(table, "general", name), GENERAL, f"{name} {GENERAL}")
    outer = _from_command_line(defaults) | general
    datasets = [
        _dataset(check, dataset, f"{name} {DATASET} {number}", outer, masked_loss, size_step)
        for number, dataset in enumerate(check.tables(table, "datasets", name), 1)
    ]
    raise_if_any(check.problems, name)
    made = tuple(dataset for dataset in datasets if dataset is not None)
    return (replace(made[0], notes=tuple(check.notes)), *made[1:]) if made else ()


def _dataset(
    check: Checker, table: Table, place: str, outer: Table, masked_loss: bool, size_step: int
) -> DatasetConfig | None:
    """Make one dataset; None when there is any problem with the file (noted in `check`)."""
    unread = set(check.unread)
    subsets = check.tables(table, "subsets", place)
    kind = _kind(check, subsets, place, masked_loss)
    own = check.values({key: value for key, value in table.items() if key != "subsets"}, DATASET, place, kind)
    values = outer | own
    ready = []
    for number, subset in enumerate(subsets, 1):
        where = f"{place} {SUBSET} {number}"
        read = check.values(subset, SUBSET, where, kind)
        if "image_dir" not in subset and "metadata_file" not in subset:
            check.problems.append(f"{where}: image_dir is missing; name the folder of pictures")
        ready.append((where, values | read))
        _note_unused_separator(check, values | read, where)
    _check_sizes(check, values, place, size_step)
    check.unread = unread  # what could not be read here says nothing about the next dataset
    if check.problems or kind is None:
        return None
    return DatasetConfig(
        subsets=tuple(SubsetConfig(source=where, **_chosen(chosen, SUBSET_FIELDS)) for where, chosen in ready),
        kind=kind,
        source=place,
        size_step=size_step,
        **_chosen(values, DATASET_FIELDS),
    )


def _kind(check: Checker, subsets: list[Table], place: str, masked_loss: bool) -> Kind | None:
    """Say what kind of dataset the subsets make, by the keys that all of them have; a mixture is a problem."""
    with_masks = sum("conditioning_data_dir" in subset for subset in subsets)
    if with_masks and not masked_loss:
        check.problems.append(
            f"{place}: conditioning_data_dir needs --masked_loss on the command line; give it, or leave the key out"
        )
    if _is_mixed(check, with_masks, len(subsets), "a conditioning_data_dir (masks for the loss)", place):
        return None
    if with_masks:
        return "masked"
    with_file = sum("metadata_file" in subset for subset in subsets)
    if _is_mixed(check, with_file, len(subsets), "a metadata_file (fine-tuning)", place):
        return None
    return "finetuning" if with_file else "dreambooth"


def _is_mixed(check: Checker, count: int, of: int, what: str, place: str) -> bool:
    """Complain when some but not all subsets have something that makes a kind of dataset."""
    mixed = 0 < count < of
    if mixed:
        check.problems.append(
            f"{place}: {count} of {of} subsets have {what}, the others none; put the two kinds into [[datasets]] of "
            "their own"
        )
    return mixed


def _note_unused_separator(check: Checker, values: Table, place: str) -> None:
    """Say where keep_tokens_separator is trained as text, as in kohya's process_caption."""
    if values.get("keep_tokens_separator") and not any(values.get(name) for name in REARRANGING_KEYS):
        check.notes.append(
            f"{place}: keep_tokens_separator has no effect and stays in captions as text, since none of "
            f"{', '.join(REARRANGING_KEYS)} is on"
        )


def _check_sizes(check: Checker, values: Table, place: str, size_step: int) -> None:
    """Complain when resolution and bucket sizes cannot go together (the original's assertions)."""
    if check.unread & SIZE_KEYS:
        return
    resolution = values.get("resolution")
    if resolution is None:
        check.problems.append(f"{place}: resolution is missing; give it here, in {GENERAL} or as --resolution")
    if not values.get("enable_bucket"):
        return
    steps, low, high = (values.get(name, getattr(DatasetConfig, name)) for name in BUCKET_KEYS)
    if steps % size_step:
        check.problems.append(
            f"{place}: bucket_reso_steps = {steps} must be a multiple of {size_step} for this kind of model"
        )
    if resolution is None or values.get("bucket_no_upscale"):
        return
    size = "{}x{}".format(*resolution)
    if low // steps * steps > min(resolution):
        check.problems.append(f"{place}: min_bucket_reso = {low} must be at most the shorter side of resolution {size}")
    if -(-high // steps) * steps < max(resolution):
        check.problems.append(
            f"{place}: max_bucket_reso = {high} must be at least the longer side of resolution {size}"
        )


def _from_command_line(defaults: Mapping[str, object]) -> Table:
    values: dict[str, Any] = {key: value for key, value in defaults.items() if value is not None}
    if values.get("max_token_length") == 75:
        del values["max_token_length"]  # one chunk, which is also the default
    if "caption_extension" in values:
        values["caption_extension"] = "." + values["caption_extension"].removeprefix(".")
    return values


def _chosen(values: Table, names: frozenset[str]) -> Table:
    return {name: value for name, value in values.items() if name in names}
