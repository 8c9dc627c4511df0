"""Dataset files: what is accepted, where values come from, and what errors say."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from library.settings.config_util import (
    DATASET_FIELDS,
    SUBSET_FIELDS,
    DatasetConfig,
    SubsetConfig,
    dataset_configs,
    load_dataset_configs,
)
from library.settings.dataset_keys import KEYS, ROWS
from library.settings.problems import UsageError

DEFAULTS = {"resolution": (64, 64)}


def load(folder: Path, text: str, name: str = "data.toml") -> tuple[DatasetConfig, ...]:
    """Write `text` and load it as a dataset file."""
    (folder / name).write_text(text, encoding="utf-8")
    return load_dataset_configs(folder / name, DEFAULTS)


def one(dataset: dict[str, Any], general: dict[str, Any] | None = None) -> DatasetConfig:
    """The config of a single dataset given as a table."""
    (config,) = dataset_configs({"general": general or {}, "datasets": [dataset]}, "data.toml", DEFAULTS)
    return config


def problem(table: dict[str, Any], defaults: dict[str, object] | None = None) -> str:
    """The message that refuses a table."""
    with pytest.raises(UsageError) as caught:
        dataset_configs(table, "data.toml", DEFAULTS if defaults is None else defaults, size_step=32)
    return str(caught.value)


def subset(**keys: object) -> dict[str, Any]:
    """A file with one dataset and one subset."""
    return {"datasets": [{"subsets": [{"image_dir": "a", **keys}]}]}


def dataset(**keys: object) -> dict[str, Any]:
    """A file with one dataset that has `keys`."""
    return {"datasets": [{"subsets": [{"image_dir": "a"}], **keys}]}


def test_a_file_with_every_kind(tmp_path: Path) -> None:
    configs = load(
        tmp_path,
        """
        [general]
        shuffle_caption = true
        caption_extension = "txt"
        [[datasets]]
        resolution = [64, 96]
        batch_size = 4
        keep_tokens = 2
          [[datasets.subsets]]
          image_dir = "pictures"
          class_tokens = "sks dog"
          num_repeats = 10
          keep_tokens = 0
          [[datasets.subsets]]
          image_dir = "reg"
          is_reg = true
        [[datasets]]
          [[datasets.subsets]]
          metadata_file = "meta.json"
          shuffle_caption = false
        """,
    )
    first, second = configs
    assert (first.kind, first.batch_size, first.resolution, first.source) == (
        "dreambooth", 4, (64, 96), "data.toml [[datasets]] 1",
    )  # fmt: skip
    pictures, reg = first.subsets
    assert (pictures.keep_tokens, pictures.num_repeats, pictures.class_tokens) == (0, 10, "sks dog")
    assert (pictures.shuffle_caption, pictures.caption_extension, pictures.is_reg) == (True, ".txt", False)
    assert (reg.keep_tokens, reg.is_reg, reg.source) == (2, True, "data.toml [[datasets]] 1 [[subsets]] 2")
    assert (second.kind, second.batch_size, second.resolution) == ("finetuning", 1, (64, 64))
    assert (second.subsets[0].image_dir, second.subsets[0].metadata_file) == (None, "meta.json")
    assert second.subsets[0].shuffle_caption is False


def test_precedence_is_subset_dataset_general_command_line_default() -> None:
    levels: list[dict[str, Any]] = [{"keep_tokens": 4}, {"keep_tokens": 3}, {"keep_tokens": 2}, {"keep_tokens": 1}]
    for given in range(5):
        in_subset, in_dataset, in_general, in_line = ({} if i < given else level for i, level in enumerate(levels))
        table = {"general": in_general, "datasets": [{**in_dataset, "subsets": [{"image_dir": "a", **in_subset}]}]}
        (config,) = dataset_configs(table, "data.toml", DEFAULTS | in_line)
        assert config.subsets[0].keep_tokens == (4, 3, 2, 1, 0)[given]


def test_zero_false_and_empty_are_values_and_none_is_unset() -> None:
    general = {"keep_tokens": 3, "shuffle_caption": True, "caption_prefix": "p"}
    keys = {"keep_tokens": 0, "shuffle_caption": False, "caption_prefix": ""}
    made = one({"subsets": [{"image_dir": "a", **keys}]}, general).subsets[0]
    assert (made.keep_tokens, made.shuffle_caption, made.caption_prefix) == (0, False, "")
    (config,) = dataset_configs(subset(), "data.toml", {"resolution": (8, 8), "max_token_length": None})
    assert config.max_token_length is None


@pytest.mark.parametrize(("given", "expected"), [(75, None), (150, 150), (225, 225), (None, None)])
def test_max_token_length_75_is_the_default(given: int | None, expected: int | None) -> None:
    (config,) = dataset_configs(subset(), "data.toml", {"resolution": (8, 8), "max_token_length": given})
    assert config.max_token_length == expected


def test_json_and_a_byte_order_mark(tmp_path: Path) -> None:
    assert load(tmp_path, json.dumps(subset(num_repeats=3)), "data.json")[0].subsets[0].num_repeats == 3
    assert load(tmp_path, "\ufeff[general]\nkeep_tokens = 1\n[[datasets]]\nsubsets = []\n")[0].subsets == ()


def test_every_key_is_a_field() -> None:
    assert set(KEYS) == (SUBSET_FIELDS | DATASET_FIELDS) - {"max_token_length", "prior_loss_weight"}
    assert len(KEYS) == len(ROWS) == 38
    assert {field.name for field in fields(SubsetConfig)} - {"source"} == SUBSET_FIELDS


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (dataset(batch_sise=1), "[[datasets]] 1: batch_sise is not a dataset option. Did you mean batch_size?"),
        (
            subset(num_repeat=1),
            "[[datasets]] 1 [[subsets]] 1: num_repeat is not a subset option. Did you mean num_repeats?",
        ),
        (
            {"general": {"shufle_caption": True}},
            "[general]: shufle_caption is not a general option. Did you mean shuffle",
        ),
        (
            {"dataset": []},
            "dataset is not a table of a dataset file; allowed: general, datasets. Did you mean datasets?",
        ),
        ({"batch_size": 1}, "batch_size stands outside every table; it belongs in [general] or [[datasets]]"),
        (dataset(batch_size="4"), 'batch_size = "4" is not allowed; allowed: a whole number of at least 1'),
        (dataset(batch_size=2.0), "batch_size = 2.0 is not allowed"),
        (dataset(batch_size=0), "batch_size = 0 is not allowed"),
        (dataset(batch_size=False), "batch_size = false is not allowed"),
        (
            dataset(resolution="1024,1024"),
            'resolution = "1024,1024" is not allowed; allowed: whole numbers of pixels, one',
        ),
        (dataset(resolution=[64]), "resolution = [64]"),
        (dataset(resolution=[64, 64.0]), "resolution = [64, 64.0]"),
        (dataset(enable_bucket="yes"), "allowed: true or false"),
        (subset(caption_dropout_rate=1.5), "a number of at least 0 and of at most 1"),
        (dataset(resize_interpolation="foo"), "one of lanczos, nearest, bilinear, linear, bicubic, cubic, area, box"),
        (subset(resize_interpolation=["area"]), "one of lanczos"),
        (subset(batch_size=1), "batch_size cannot stand in [[subsets]]; it belongs in [general] or [[datasets]]"),
        (dataset(is_reg=True), "is_reg cannot stand in [[datasets]]; it belongs in [[subsets]]"),
        (dataset(max_token_length=150), "give --max_token_length on the command line"),
        (subset(prior_loss_weight=0.5), "give --prior_loss_weight on the command line"),
        ({"datasets": [{"subsets": [{"num_repeats": 1}]}]}, "[[subsets]] 1: image_dir is missing"),
        ({"datasets": {}}, "datasets must be a list of tables; write [[datasets]]"),
        (
            {"datasets": [{"subsets": 3}]},
            "[[datasets]] 1: subsets must be a list of tables; write [[datasets.subsets]]",
        ),
        ({"general": 3}, "general must be a table; write [general]"),
        (subset(metadata_file="m", is_reg=True), "is_reg is only for subsets with neither metadata_file nor"),
        ({"datasets": [{"subset": []}]}, "subset is not a dataset option. Did you mean subsets?"),
        (subset(face_crop_aug_range=[2, 1]), "two numbers of at least 0, the smaller one first"),
        (subset(custom_attributes={"diff_output_preservation": True}), "diff_output_preservation is not built yet"),
        (subset(conditioning_data_dir="c"), "conditioning_data_dir needs --masked_loss on the command line"),
        (dataset(alpha_mask=True), "alpha_mask cannot stand in [[datasets]]; it belongs in [[subsets]]"),
        (subset(validation_split=0.1), "it belongs in [general] or [[datasets]]"),
        (dataset(enable_bucket=True, bucket_reso_steps=8, min_bucket_reso=64), "multiple of 32"),
        (dataset(enable_bucket=True), "min_bucket_reso = 256 must be at most the shorter side of resolution 64x64"),
        (dataset(enable_bucket=True, resolution=2048), "max_bucket_reso = 1024 must be at least the longer side"),
    ],
)
def test_problems_name_place_value_and_what_is_allowed(table: dict[str, Any], words: str) -> None:
    message = problem(table)
    assert message.startswith("data.toml")
    assert words in message
    assert "\n" not in message


def test_all_problems_come_at_once() -> None:
    table = {
        "general": {"keep_tokens": "x"},
        "datasets": [
            {"batch_sise": 1, "subsets": [{"image_dir": 3}]},
            {"subsets": [{"image_dir": "a"}, {"metadata_file": "m"}, {"shuffel_caption": True}]},
        ],
    }
    lines = problem(table).splitlines()
    assert lines[0] == "6 problems with data.toml:"
    for line, word in zip(
        lines[1:],
        ("keep_tokens", "batch_sise", "image_dir = 3", "1 of 3 subsets", "shuffel_caption", "image_dir is missing"),
        strict=True,
    ):
        assert word in line


def test_masks_make_a_kind_of_their_own() -> None:
    keys = {"conditioning_data_dir": "masks", "caption_extension": "txt"}
    (config,) = dataset_configs(subset(**keys), "data.toml", DEFAULTS, masked_loss=True)
    assert (config.kind, config.subsets[0].conditioning_data_dir) == ("masked", "masks")
    (plain,) = dataset_configs(subset(alpha_mask=True), "data.toml", DEFAULTS, masked_loss=True)
    assert (plain.kind, plain.subsets[0].alpha_mask) == ("dreambooth", True)
    for stranger in ("is_reg", "alpha_mask"):
        with pytest.raises(UsageError, match=f"{stranger} is only for subsets"):
            dataset_configs(subset(**keys, **{stranger: True}), "data.toml", DEFAULTS, masked_loss=True)


def test_what_is_taken_and_should_be_known_is_noted() -> None:
    table = {"general": {"network_multiplier": 0.5}} | dataset(batch_size=True, cache_info=True)
    table["datasets"][0]["subsets"][0] |= {"resize_interpolation": "lanczoz", "custom_attributes": {"mood": "blue"}}
    (config,) = dataset_configs(table, "data.toml", DEFAULTS)
    assert (config.batch_size, config.subsets[0].resize_interpolation) == (1, None)
    for words, note in zip(
        (
            "data.toml [general]: network_multiplier = 0.5: has no effect",
            "data.toml [[datasets]] 1: batch_size = true is read as 1; allowed: a whole number",
            "data.toml [[datasets]] 1: cache_info = true: no metadata_cache.json",
            'resize_interpolation = "lanczoz" is left unset; allowed: one of lanczos',
            'custom_attributes = {"mood": "blue"}: nothing reads mood',
        ),
        config.notes,
        strict=True,
    ):
        assert words in note
    assert one(dataset(batch_size=2, network_multiplier=1)["datasets"][0]).notes == ()


@pytest.mark.parametrize(
    ("keys", "noted"),
    [({}, 1), ({"shuffle_caption": True}, 0), ({"token_warmup_step": 1}, 0), ({"caption_tag_dropout_rate": 0.1}, 0)],
)
def test_a_separator_that_stays_in_captions_is_noted(keys: dict[str, Any], noted: int) -> None:
    (config,) = dataset_configs(subset(**keys), "data.toml", DEFAULTS | {"keep_tokens_separator": "|||"})
    assert [note.count("stays in captions as text") for note in config.notes] == [1] * noted


def test_resolution_must_come_from_somewhere() -> None:
    assert "resolution is missing; give it here, in [general] or as --resolution" in problem(subset(), {})
    assert "missing" not in problem(dataset(resolution="64"), {})


def test_what_one_dataset_gets_wrong_does_not_hide_what_another_lacks() -> None:
    message = problem({"datasets": [{"resolution": "64", "subsets": []}, {"subsets": []}]}, {})
    assert "[[datasets]] 1: resolution = " in message
    assert "[[datasets]] 2: resolution is missing" in message
    both = problem({"general": {"resolution": "64"}, "datasets": [{"subsets": []}, {"subsets": []}]}, {})
    assert "missing" not in both


def test_bucket_limits_are_judged_after_rounding_to_the_steps() -> None:
    config = one({"enable_bucket": True, "min_bucket_reso": 100, "resolution": 64, "subsets": []})
    assert config.min_bucket_reso == 100
    config = one({"enable_bucket": True, "bucket_no_upscale": True, "resolution": 64, "subsets": []})
    assert config.bucket_no_upscale


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("data.toml", "[general]\nkeep_tokens = = 1\n", "line 2, column 15"),
        ("data.toml", "[general\nx = 1", "line 1"),
        ("data.toml", '[[datasets]]\nx = "a', "line 2, column 7"),
        ("data.toml", 'image_dir = "C:\\data"', "single quotes"),
        ("data.json", '{"general": {},}', "line 1, column 16"),
        ("data.json", "[]", "must hold a table"),
        ("data.json", '{"general": {"flip_aug": true, "flip_aug": false}}', "'flip_aug' is there twice"),
        ("data.yaml", "a: 1", "must end in .toml or .json"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, text, name)
    assert name in str(caught.value)
    assert words in str(caught.value)


def test_missing_folder_and_non_utf8(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load_dataset_configs(tmp_path / "none.toml", {})
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        load_dataset_configs(tmp_path / "folder.toml", {})
    (tmp_path / "data.toml").write_bytes("[general]\n# \u732b\u72d7".encode("gbk"))
    with pytest.raises(UsageError, match=r"not UTF-8 text \(line 2\)"):
        load_dataset_configs(tmp_path / "data.toml", {})


ACCEPTED: tuple[dict[str, Any], ...] = (
    {},
    {"datasets": [{}]},
    {"datasets": [{"subsets": []}]},
    {"general": {"class_tokens": "x"}, "datasets": []},
    dataset(class_tokens="x", resolution=1024),
    dataset(resolution=[1024, 768], network_multiplier=1.0, validation_split=0, validation_seed=3),
    dataset(network_multiplier=1, color_aug=True, custom_attributes={"any": 1}, cache_info=True),
    subset(face_crop_aug_range=[1, 2], alpha_mask=True, color_aug=True),
    subset(caption_dropout_rate=1, token_warmup_step=1, num_repeats=0, alpha_mask=False),
    subset(metadata_file="m", caption_dropout_rate=0.5, token_warmup_step=0.5, resize_interpolation="box"),
    {"general": {"caption_extension": ".txt"}, "datasets": [{"subsets": [{"metadata_file": "m"}]}]},
)


@pytest.mark.parametrize("table", ACCEPTED)
def test_accepted(table: dict[str, Any]) -> None:
    configs = dataset_configs(table, "data.toml", DEFAULTS)
    assert len(configs) == len(table.get("datasets", []))
