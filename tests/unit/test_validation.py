"""Pictures held back from training: which, how many, and that none of them is trained."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from library.data.dataset import TrainDataset
from library.data.report.dataset_metadata import dataset_metadata
from library.data.run_rng import RunRng
from library.data.scan.validation import split_positions
from library.families.sdxl.tokenizers import sdxl_tokenizers
from library.settings.config_util import DatasetConfig, SubsetConfig


def pictures(folder: Path, count: int, size: tuple[int, int] = (64, 64)) -> Path:
    """A folder with `count` pictures."""
    folder.mkdir(parents=True)
    for number in range(count):
        shade = np.full((size[1], size[0], 3), number, np.uint8)
        Image.fromarray(shade).save(folder / f"{number:03}.png")
    return folder


def config(*subsets: SubsetConfig, split: float = 0.25, seed: int | None = 1, **options) -> DatasetConfig:
    """A data set that holds pictures back."""
    kind = "finetuning" if any(subset.metadata_file for subset in subsets) else "dreambooth"
    settings = {"resolution": (64, 64), "source": "data.toml [[datasets]] 1"} | options
    return DatasetConfig(subsets=subsets, kind=kind, validation_split=split, validation_seed=seed, **settings)


def data(*configs: DatasetConfig, seed: int = 5) -> TrainDataset:
    """The training data of these settings."""
    return TrainDataset(configs, sdxl_tokenizers(), RunRng(seed))


def held(train_data: TrainDataset) -> set[str]:
    """Paths of the pictures held back."""
    return {str(image.path) for dataset in train_data.validation for image in dataset.images}


def trained(train_data: TrainDataset) -> set[str]:
    """Paths of the pictures that an epoch shows."""
    return {key for batch in train_data.batches(1, 0) for key in batch.keys}


@pytest.mark.parametrize("split", [0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.99, 1])
def test_the_parts_share_nothing_and_miss_nothing(split: float) -> None:
    for count in range(40):
        parts = split_positions(count, split, seed=count)
        assert sorted(parts[0] + parts[1]) == list(range(count))
        assert abs(len(parts[1]) - count * split) < 1 + 1e-9
        assert split_positions(count, split, seed=count) == parts
    assert split_positions(40, 0.5, 1) != split_positions(40, 0.5, 2)


def test_training_uses_its_part_only_and_the_log_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = pictures(tmp_path / "train", 12)
    (folder / "003.caption").write_text("seldom, tag")
    subset = SubsetConfig(image_dir=str(folder), class_tokens="cat", num_repeats=3)
    with caplog.at_level(logging.WARNING):
        made = data(config(subset))
    assert caplog.text.count("3 of 12 pictures held back for validation") == 1
    assert len(held(made)) == made.num_validation_images == 3
    assert not held(made) & trained(made)
    assert len(held(made) | trained(made)) == 12
    assert made.num_train_images == 9 * 3
    (validation,) = made.validation
    assert [image.repeats for image in validation.images] == [1, 1, 1]
    metadata = dataset_metadata(made)
    assert metadata["ss_dataset_dirs"] == {"train": {"n_repeats": 3, "img_count": 9}}
    seen = {"cat": 9} if str(folder / "003.png") in held(made) else {"cat": 8, "seldom": 1, "tag": 1}
    assert metadata["ss_tag_frequency"] == {"train": seen}


def test_the_seed_of_the_split_or_else_of_the_run_decides(tmp_path: Path) -> None:
    subset = SubsetConfig(image_dir=str(pictures(tmp_path / "train", 30)))
    assert held(data(config(subset, seed=1), seed=5)) == held(data(config(subset, seed=1), seed=6))
    assert held(data(config(subset, seed=None), seed=1)) == held(data(config(subset, seed=1)))
    assert held(data(config(subset, seed=None), seed=5)) != held(data(config(subset, seed=None), seed=6))


def test_regularisation_pictures_are_not_held_back_and_balance_the_rest(tmp_path: Path) -> None:
    train, reg = pictures(tmp_path / "train", 8), pictures(tmp_path / "reg", 8)
    made = data(config(SubsetConfig(image_dir=str(train)), SubsetConfig(image_dir=str(reg), is_reg=True), split=0.5))
    assert len(held(made)) == 4 and all(path.startswith(str(train)) for path in held(made))
    assert sum(path.startswith(str(reg)) for path in trained(made)) == 4


def test_a_picture_held_back_in_one_data_set_is_trained_in_none(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "train", 12)
    (tmp_path / "link").symlink_to(folder)
    made = data(
        config(SubsetConfig(image_dir=str(folder))),
        config(SubsetConfig(image_dir=str(tmp_path / "link")), split=0.0, source="second"),
        config(SubsetConfig(image_dir=str(folder)), split=0.5, seed=7, source="third"),
    )
    names = {Path(path).name for path in held(made)}
    assert 6 <= len(names) <= 9
    assert not names & {Path(path).name for path in trained(made)}
    assert any(note.startswith("second: ") and "of 12 pictures held back" in note for note in made.plan().notes)
    assert [len(dataset.images) for dataset in made.validation] == [3, 0, 6]


def test_a_link_to_a_picture_held_back_is_not_trained(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "train", 8)
    (tmp_path / "chosen").mkdir()
    for number in range(8):
        (tmp_path / "chosen" / f"link{number}.png").symlink_to(folder / f"{number:03}.png")
    made = data(
        config(SubsetConfig(image_dir=str(folder))),
        config(SubsetConfig(image_dir=str(tmp_path / "chosen")), split=0.0),
    )
    assert len(held(made)) == 2
    assert not held(made) & {str(Path(path).resolve()) for path in trained(made)}


def test_metadata_files_are_split_too(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "images", 4)
    (tmp_path / "meta.jsonl").write_text("".join(f'{{"image_path": "{n:03}", "caption": "c"}}\n' for n in range(4)))
    made = data(config(SubsetConfig(metadata_file=str(tmp_path / "meta.jsonl"), image_dir=str(folder))))
    assert (len(held(made)), len(trained(made))) == (1, 3)


def test_nothing_left_to_train_is_an_error(tmp_path: Path) -> None:
    subset = SubsetConfig(image_dir=str(pictures(tmp_path / "train", 3)))
    with pytest.raises(ValueError, match=r"3 pictures are held back for validation \(validation_split = 1\)"):
        data(config(subset, split=1.0))
    with pytest.raises(ValueError, match="second: 3 pictures are held back for validation .by another data set"):
        data(config(subset, split=1.0), config(subset, split=0.0, source="second"))


def test_broken_pictures_are_found_in_both_parts_and_told_once(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "train", 6)
    for path in folder.iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="7 problems") as error:
        data(config(SubsetConfig(image_dir=str(folder)), resolution=(60, 64)))
    assert all(str(error.value).count(f"{number:03}.png") == 1 for number in range(6))


def test_few_pictures_and_a_small_share_hold_back_none(tmp_path: Path) -> None:
    made = data(config(SubsetConfig(image_dir=str(pictures(tmp_path / "train", 3))), split=0.1))
    assert made.num_validation_images == 0 and len(trained(made)) == 3
    assert any("0 of 3 pictures held back" in note for note in made.plan().notes)
