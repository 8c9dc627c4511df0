"""Data sets without a dataset file: folders named after their repeats and class, and a metadata file."""

from pathlib import Path
from typing import Any

import pytest

from library.settings.arguments import UsageError, read_train_args
from library.settings.config_util import DatasetConfig
from library.settings.folder_form import run_dataset_configs


def configs(command: str, *paths: object) -> tuple[DatasetConfig, ...]:
    """The data sets of a command line; `{}` in it are the paths, which may hold blanks."""
    texts = iter(paths)
    args = read_train_args(
        [str(next(texts)) if word == "{}" else word for word in command.split()], require_paths=False
    )
    return run_dataset_configs(args.dataset_defaults(), **args.dataset_sources())


def problem(command: str, *paths: object) -> str:
    """The message that refuses a command line or what it names."""
    with pytest.raises(UsageError) as caught:
        configs(command, *paths)
    return str(caught.value)


def folders(parent: Path, *names: str) -> Path:
    """`parent` with folders of these names."""
    for name in names:
        (parent / name).mkdir(parents=True)
    return parent


def test_folders_say_repeats_and_class(tmp_path: Path) -> None:
    train = folders(tmp_path / "train", "2_sks dog", "10_my_cat", "3", "3_")
    reg = folders(tmp_path / "reg", "1_dog")
    (config,) = configs("--train_data_dir {} --reg_data_dir {} --resolution 64", train, reg)
    assert (config.kind, config.resolution, config.notes) == ("dreambooth", (64, 64), ())
    assert [(Path(s.image_dir or "").name, s.num_repeats, s.class_tokens, s.is_reg) for s in config.subsets] == [
        ("10_my_cat", 10, "my_cat", False),
        ("2_sks dog", 2, "sks dog", False),
        ("3", 3, "", False),
        ("3_", 3, "", False),
        ("1_dog", 1, "dog", True),
    ]
    assert config.subsets[4].source == f"--reg_data_dir {reg / '1_dog'}"


def test_the_command_lines_flags_are_the_subsets_settings(tmp_path: Path) -> None:
    train = folders(tmp_path, "10_dog")
    flags: dict[str, tuple[str, Any]] = {
        "shuffle_caption": ("", True),
        "caption_extension": ("txt", ".txt"),
        "caption_separator": (";", ";"),
        "keep_tokens": ("2", 2),
        "keep_tokens_separator": ("|||", "|||"),
        "secondary_separator": ("+", "+"),
        "enable_wildcard": ("", True),
        "flip_aug": ("", True),
        "random_crop": ("", True),
        "color_aug": ("", True),
        "face_crop_aug_range": ("1,2.5", (1.0, 2.5)),
        "alpha_mask": ("", True),
        "cache_info": ("", True),
        "caption_prefix": ("a", "a"),
        "caption_suffix": ("b", "b"),
        "caption_dropout_rate": ("0.5", 0.5),
        "caption_dropout_every_n_epochs": ("3", 3),
        "caption_tag_dropout_rate": ("0.25", 0.25),
        "token_warmup_min": ("2", 2),
        "token_warmup_step": ("0.5", 0.5),
        "resize_interpolation": ("area", "area"),
    }
    of_dataset: dict[str, tuple[str, Any]] = {
        "enable_bucket": ("", True),
        "min_bucket_reso": ("32", 32),
        "max_bucket_reso": ("640", 640),
        "bucket_reso_steps": ("32", 32),
        "bucket_no_upscale": ("", True),
        "max_token_length": ("150", 150),
        "validation_split": ("0.1", 0.1),
        "validation_seed": ("-4", -4),
    }
    words = [f"--{name} {value}" for name, (value, _) in (flags | of_dataset).items()]
    (config,) = configs("--train_data_dir {} --resolution 64,96 --train_batch_size 3 " + " ".join(words), train)
    assert {name: getattr(config.subsets[0], name) for name in flags} == {name: v for name, (_, v) in flags.items()}
    assert {name: getattr(config, name) for name in of_dataset} == {name: v for name, (_, v) in of_dataset.items()}
    assert (config.batch_size, config.resolution, config.subsets[0].num_repeats) == (3, (64, 96), 10)


def test_what_the_original_skips_in_silence_is_told(tmp_path: Path) -> None:
    train = folders(tmp_path / "train", "10_dog", "cats", "1.5_birds", "-1_old", "0_off")
    (train / "a.png").touch()
    (train / "loop").symlink_to("loop")
    (config,) = configs("--train_data_dir {} --resolution 64", train)
    assert [subset.num_repeats for subset in config.subsets] == [-1, 0, 10]  # those below 1 are left out by the scan
    text = "\n".join(config.notes)
    for words in ("folder 'cats' is left out", "folder '1.5_birds' is left out", "2 files directly in"):
        assert words in text
    assert "10_sks dog" in text


def test_folders_that_cannot_be_used_are_told_at_once(tmp_path: Path) -> None:
    plain = folders(tmp_path / "plain", "dog")
    message = problem("--train_data_dir {} --reg_data_dir {} --resolution 64", plain, tmp_path / "gone")
    assert "2 problems" in message
    assert f"--train_data_dir {plain}: holds no folder named REPEATS_class, for example 10_sks dog" in message
    assert f"--reg_data_dir {tmp_path / 'gone'}: cannot be listed: No such file" in message


def test_a_metadata_file_with_and_without_a_folder() -> None:
    (config,) = configs("--in_json set.json --train_data_dir pictures --resolution 64 --dataset_repeats 3")
    (subset,) = config.subsets
    assert (config.kind, subset.metadata_file, subset.image_dir, subset.num_repeats, subset.source) == (
        "finetuning", "set.json", "pictures", 3, "--in_json",
    )  # fmt: skip
    assert configs("--in_json set.json --resolution 64")[0].subsets[0].image_dir is None


def test_the_dataset_file_wins_and_the_log_says_so(tmp_path: Path) -> None:
    file = tmp_path / "data.toml"
    file.write_text('[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = "a"\n')
    words = ["--dataset_config", str(file), "--train_data_dir", "b", "--in_json", "c", "--reg_data_dir", "d"]
    args = read_train_args(words, require_paths=False)
    (config,) = run_dataset_configs(args.dataset_defaults(), **args.dataset_sources())
    assert [subset.image_dir for subset in config.subsets] == ["a"]
    assert any("have no effect with --dataset_config" in notice for notice in args.notices)
    assert not any("no effect" in notice for notice in read_train_args(words[:2], require_paths=False).notices)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("--reg_data_dir a --resolution 64", "--reg_data_dir needs --train_data_dir"),
        ("--train_data_dir a --in_json b --reg_data_dir c --resolution 64", "--reg_data_dir cannot go with --in_json"),
        ("--train_data_dir a", "--resolution is missing"),
        ("--in_json a", "--resolution is missing"),
        ("--in_json a --resolution 64 --caption_separator=", "--caption_separator must not be empty"),
        ("--resolution 64", "no pictures are named"),
        ("--train_data_dir a --resolution 64 --face_crop_aug_range 2,1", "--face_crop_aug_range 2,1"),
    ],
)
def test_contradictions(command: str, words: str) -> None:
    assert words in problem(command)


def test_flags_without_effect_are_told() -> None:
    for command, word in (
        ("--dataset_repeats 2", "--dataset_repeats has no"),
        ("--validation_seed 1", "_seed has no"),
        ("--cache_info", "--cache_info: no metadata_cache.json is written"),
    ):
        args = read_train_args(f"--train_data_dir a --resolution 64 {command}".split(), require_paths=False)
        assert any(word in notice for notice in args.notices)


def test_one_of_the_three_forms_is_required() -> None:
    with pytest.raises(UsageError, match="--dataset_config or --train_data_dir or --in_json is required"):
        read_train_args([])
    with pytest.raises(UsageError) as caught:
        read_train_args(["--in_json", "a", "--resolution", "64"])
    assert "--dataset_config" not in str(caught.value)
