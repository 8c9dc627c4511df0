"""The keys of a dataset file: one row says a key's values, where it may stand, and whether it is built."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

GENERAL, DATASET, SUBSET = "[general]", "[[datasets]]", "[[subsets]]"
Kind = Literal["dreambooth", "finetuning"]

RESIZE_FILTERS = ("lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area", "box")


@dataclass(frozen=True)
class Value:
    """What a key's value may be. `read` returns it typed or raises ValueError or TypeError; `allowed` is in words."""

    read: Callable[[object], object]
    allowed: str


@dataclass(frozen=True)
class Key:
    """One key. `off` is set for a key whose feature is not built: it tells the values that switch nothing on."""

    name: str
    value: Value
    places: tuple[str, ...]
    only: Kind | None = None
    off: Callable[[object], bool] | None = None


def _whole(low: int | None = None) -> Value:
    def read(value: object) -> int:
        # A bool is an int to Python and to the original, which so reads `batch_size = true` as 1. That is a slip.
        if isinstance(value, bool) or not isinstance(value, int) or (low is not None and value < low):
            raise ValueError
        return value

    return Value(read, "a whole number" if low is None else f"a whole number of at least {low}")


def _number(low: float | None = None, high: float | None = None) -> Value:
    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError
        if (low is not None and value < low) or (high is not None and value > high):
            raise ValueError
        return float(value)

    limits = [f"{word} {limit:g}" for word, limit in (("of at least", low), ("of at most", high)) if limit is not None]
    return Value(read, " ".join(["a number", " and ".join(limits)]).strip())


def _of_type(kind: type, allowed: str) -> Value:
    def read(value: object) -> object:
        if not isinstance(value, kind):
            raise TypeError
        return value

    return Value(read, allowed)


def _pair(item: Value) -> Callable[[object], tuple[object, object]]:
    def read(value: object) -> tuple[object, object]:
        if not isinstance(value, list) or len(value) != 2:
            raise ValueError
        return item.read(value[0]), item.read(value[1])

    return read


def _read_resolution(value: object) -> object:
    return _pair(SIDE)(value) if isinstance(value, list) else (SIDE.read(value), value)


def _read_filter(value: object) -> object:
    # The original lets any text through here and then resizes with OpenCV's default; a wrong name is a slip.
    if value not in RESIZE_FILTERS:
        raise ValueError
    return value


def _read_extension(value: object) -> str:
    text = TEXT.read(value)
    assert isinstance(text, str)
    return text if text.startswith(".") else f".{text}"


SIDE = _whole(1)
YES_NO = _of_type(bool, "true or false")
TEXT = _of_type(str, "a text in quotes")
TABLE = _of_type(dict, "a table")
RATE = _number(0, 1)
COUNT = _whole(0)
RESOLUTION = Value(_read_resolution, "whole numbers of pixels, one side or [width, height]: 1024 or [1216, 832]")
FILTER = Value(_read_filter, "one of " + ", ".join(RESIZE_FILTERS))
EXTENSION = Value(_read_extension, 'a file ending such as ".txt"')
PAIR = Value(_pair(_number()), "two numbers, for example [1.0, 2.0]")

DATASET_PLACES = (GENERAL, DATASET)
ANYWHERE = (GENERAL, DATASET, SUBSET)
SUBSET_ONLY = (SUBSET,)

ROWS: tuple[Key, ...] = (
    Key("batch_size", _whole(1), DATASET_PLACES),
    Key("resolution", RESOLUTION, DATASET_PLACES),
    Key("enable_bucket", YES_NO, DATASET_PLACES),
    Key("min_bucket_reso", _whole(1), DATASET_PLACES),
    Key("max_bucket_reso", _whole(1), DATASET_PLACES),
    Key("bucket_reso_steps", _whole(1), DATASET_PLACES),
    Key("bucket_no_upscale", YES_NO, DATASET_PLACES),
    Key("resize_interpolation", FILTER, ANYWHERE),
    Key("num_repeats", _whole(), ANYWHERE),  # below 1 drops the subset
    Key("shuffle_caption", YES_NO, ANYWHERE),
    Key("enable_wildcard", YES_NO, ANYWHERE),
    Key("flip_aug", YES_NO, ANYWHERE),
    Key("random_crop", YES_NO, ANYWHERE),
    Key("caption_separator", TEXT, ANYWHERE),
    Key("keep_tokens", COUNT, ANYWHERE),
    Key("keep_tokens_separator", TEXT, ANYWHERE),
    Key("secondary_separator", TEXT, ANYWHERE),
    Key("caption_prefix", TEXT, ANYWHERE),
    Key("caption_suffix", TEXT, ANYWHERE),
    Key("caption_dropout_rate", RATE, ANYWHERE),
    Key("caption_dropout_every_n_epochs", COUNT, ANYWHERE),
    Key("caption_tag_dropout_rate", RATE, ANYWHERE),
    Key("token_warmup_min", COUNT, ANYWHERE),
    Key("token_warmup_step", _number(0), ANYWHERE),
    Key("caption_extension", EXTENSION, ANYWHERE, only="dreambooth"),
    Key("class_tokens", TEXT, ANYWHERE, only="dreambooth"),
    Key("image_dir", TEXT, SUBSET_ONLY),
    Key("is_reg", YES_NO, SUBSET_ONLY, only="dreambooth"),
    Key("metadata_file", TEXT, SUBSET_ONLY, only="finetuning"),
    Key("network_multiplier", _number(), DATASET_PLACES, off=lambda value: value == 1),
    Key("validation_split", RATE, DATASET_PLACES, off=lambda value: value == 0),
    Key("validation_seed", _whole(), DATASET_PLACES, off=lambda _: True),  # alone it switches nothing on
    Key("color_aug", YES_NO, ANYWHERE, off=lambda value: value is False),
    Key("face_crop_aug_range", PAIR, ANYWHERE, off=lambda _: False),
    Key("custom_attributes", TABLE, ANYWHERE, off=lambda value: value == {}),
    Key("cache_info", YES_NO, ANYWHERE, only="dreambooth", off=lambda value: value is False),
    Key("alpha_mask", YES_NO, SUBSET_ONLY, off=lambda value: value is False),
    Key("conditioning_data_dir", TEXT, SUBSET_ONLY, off=lambda _: False),
)

KEYS: Mapping[str, Key] = MappingProxyType({key.name: key for key in ROWS})

COMMAND_LINE_ONLY = ("prior_loss_weight", "max_token_length", "debug_dataset", "masked_loss")
"""Settings of a dataset that are flags, never keys of the file; in the original as well."""
