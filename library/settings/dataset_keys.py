"""The keys of a dataset file: one row says a key's values, where it may stand, and in which kinds of datasets."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from library.settings.dataset_values import (
    COUNT,
    EXTENSION,
    FILLED,
    FILTER,
    NUMBER,
    RANGE,
    RATE,
    RESOLUTION,
    SIDE,
    TABLE,
    TEXT,
    WHOLE,
    YES_NO,
    Value,
    number,
)

GENERAL, DATASET, SUBSET = "[general]", "[[datasets]]", "[[subsets]]"
Kind = Literal["dreambooth", "finetuning", "masked"]


@dataclass(frozen=True)
class Key:
    """One key of a dataset file."""

    name: str
    value: Value
    places: tuple[str, ...]
    kinds: tuple[Kind, ...] = ("dreambooth", "finetuning", "masked")
    """Kinds of datasets that know the key."""
    refused: Callable[[object], str] = lambda _: ""
    """Why a typed value cannot be had here; empty when it can."""
    note: Callable[[object], str] = lambda _: ""
    """What a user should know about a typed value; empty for nothing."""
    slips_in: tuple[str, ...] = (GENERAL, DATASET, SUBSET)
    """Places where the original takes a slip (`Value.slip`)."""


def _no_preservation(value: object) -> str:
    wanted = isinstance(value, dict) and value.get("diff_output_preservation")
    return "diff_output_preservation is not built yet; leave it out" if wanted else ""


def _no_reader(value: object) -> str:
    assert isinstance(value, dict)
    names = [str(name) for name in value if name != "diff_output_preservation"]
    return f"nothing reads {', '.join(names)}" if names else ""


DATASET_PLACES = (GENERAL, DATASET)
ANYWHERE = (GENERAL, DATASET, SUBSET)
SUBSET_ONLY = (SUBSET,)
FOLDERS: tuple[Kind, ...] = ("dreambooth", "masked")
DREAMBOOTH: tuple[Kind, ...] = ("dreambooth",)

NO_EFFECT = "has no effect, in the original neither"
CACHE_INFO = "no metadata_cache.json is written; sizes of unchanged files are remembered anyway, captions are read anew"

ROWS: tuple[Key, ...] = (
    Key("batch_size", SIDE, DATASET_PLACES),
    Key("resolution", RESOLUTION, DATASET_PLACES),
    Key("enable_bucket", YES_NO, DATASET_PLACES),
    Key("min_bucket_reso", SIDE, DATASET_PLACES),
    Key("max_bucket_reso", SIDE, DATASET_PLACES),
    Key("bucket_reso_steps", SIDE, DATASET_PLACES),
    Key("bucket_no_upscale", YES_NO, DATASET_PLACES),
    Key("resize_interpolation", FILTER, ANYWHERE, slips_in=SUBSET_ONLY),
    Key("num_repeats", WHOLE, ANYWHERE),  # below 1 drops the subset
    Key("shuffle_caption", YES_NO, ANYWHERE),
    Key("enable_wildcard", YES_NO, ANYWHERE),
    Key("flip_aug", YES_NO, ANYWHERE),
    Key("random_crop", YES_NO, ANYWHERE),
    Key("caption_separator", FILLED, ANYWHERE),
    Key("keep_tokens", COUNT, ANYWHERE),
    Key("keep_tokens_separator", TEXT, ANYWHERE),
    Key("secondary_separator", TEXT, ANYWHERE),
    Key("caption_prefix", TEXT, ANYWHERE),
    Key("caption_suffix", TEXT, ANYWHERE),
    Key("caption_dropout_rate", RATE, ANYWHERE),
    Key("caption_dropout_every_n_epochs", COUNT, ANYWHERE),
    Key("caption_tag_dropout_rate", RATE, ANYWHERE),
    Key("token_warmup_min", COUNT, ANYWHERE),
    Key("token_warmup_step", number(0), ANYWHERE),
    Key("color_aug", YES_NO, ANYWHERE),
    Key("face_crop_aug_range", RANGE, ANYWHERE),
    Key("custom_attributes", TABLE, ANYWHERE, refused=_no_preservation, note=_no_reader),
    Key("caption_extension", EXTENSION, ANYWHERE, FOLDERS),
    Key("cache_info", YES_NO, ANYWHERE, FOLDERS, note=lambda on: CACHE_INFO if on else ""),
    Key("class_tokens", TEXT, ANYWHERE, DREAMBOOTH),
    Key("image_dir", FILLED, SUBSET_ONLY),
    Key("is_reg", YES_NO, SUBSET_ONLY, DREAMBOOTH),
    Key("alpha_mask", YES_NO, SUBSET_ONLY, ("dreambooth", "finetuning")),
    Key("metadata_file", FILLED, SUBSET_ONLY, ("finetuning",)),
    Key("conditioning_data_dir", FILLED, SUBSET_ONLY, ("masked",)),
    Key("validation_split", RATE, DATASET_PLACES),
    Key("validation_seed", WHOLE, DATASET_PLACES),
    Key("network_multiplier", NUMBER, DATASET_PLACES, note=lambda value: "" if value == 1 else NO_EFFECT),
)

KEYS: Mapping[str, Key] = MappingProxyType({key.name: key for key in ROWS})

COMMAND_LINE_ONLY = ("prior_loss_weight", "max_token_length", "debug_dataset", "masked_loss")
"""Settings of a dataset that are flags, never keys of the file; in the original as well."""
