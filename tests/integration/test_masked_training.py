"""Masks, weighted captions and broken pictures through the real command."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from library.files.safetensors_utils import SafetensorsFile
from tests.integration.conftest import Command
from tests.integration.test_bad_input import refused
from tests.integration.test_train_and_draw import COMMON, train

OPTIONS = (*COMMON, "--network_dim=4", "--network_train_unet_only", "--max_train_steps=2", "--output_name=a")


def masked_data(data: Path, folder: Path, level: int) -> Path:
    """A copy of the picture set with masks of one grey level, a broken picture and weighted captions."""
    toml = data.read_text(encoding="utf-8")
    pictures = Path(re.search(r'image_dir = "(.*)"', toml)[1])  # type: ignore[index]
    shutil.copytree(pictures, folder / "pictures")
    for caption in (folder / "pictures").glob("*.txt"):
        caption.write_text(f"({caption.read_text(encoding='utf-8')}:1.3)", encoding="utf-8")
    (folder / "masks").mkdir()
    for path in (folder / "pictures").glob("*.png"):
        with Image.open(path) as picture:
            Image.new("L", picture.size, level).save(folder / "masks" / path.name)
    (folder / "pictures" / "broken.png").write_text("no picture")
    Image.new("L", (64, 64), level).save(folder / "masks" / "broken.png")
    toml = toml.replace(f'image_dir = "{pictures}"', f'image_dir = "{folder / "pictures"}"\ncolor_aug = true')
    toml = toml.replace("color_aug", f'conditioning_data_dir = "{folder / "masks"}"\ncolor_aug')
    (folder / "data.toml").write_text(toml, encoding="utf-8")
    return folder / "data.toml"


@pytest.mark.slow
def test_black_masks_train_nothing_and_grey_ones_do(run: Command, tiny: Path, data: Path, tmp_path: Path) -> None:
    flags = ("--masked_loss", "--skip_bad_images", "--weighted_captions")
    ups = {}
    for level in (0, 51):
        folder = tmp_path / str(level)
        config = masked_data(data, folder, level)
        log = train(run, tiny, config, folder, *OPTIONS, *flags)
        assert "broken.png: the image cannot be read" in log
        with SafetensorsFile(folder / "a.safetensors") as file:
            assert file.metadata["ss_skipped_images"] == '["broken.png"]'
            ups[level] = np.concatenate([file.read(key).ravel() for key in file if key.endswith("lora_up.weight")])
    assert not ups[0].any() and ups[51].all()


def test_masked_loss_without_masks(run: Command, tiny: Path, data: Path, tmp_path: Path) -> None:
    error = refused(run, tiny, data, tmp_path, "--masked_loss")
    assert "--masked_loss: no image has a mask" in error and "conditioning_data_dir" in error


def test_a_broken_picture_stops_the_run(run: Command, tiny: Path, data: Path, tmp_path: Path) -> None:
    config = masked_data(data, tmp_path / "in", 255)
    assert "broken.png: the image cannot be read" in refused(run, tiny, config, tmp_path, "--masked_loss")
