"""The same base model from a single file and from a diffusers folder; what a wrong one is told."""

from pathlib import Path

import numpy as np
import pytest

from library.families.base import BaseWeights
from library.families.sdxl.checkpoint import OutlineFile, load_weights
from library.families.sdxl.diffusers_keys import diffusers_unet_key
from library.families.sdxl.keys import PARTS, diffusers_names
from library.families.sdxl.targets import lora_targets
from library.files.safetensors_utils import SafetensorsFile, save_file
from tools.make_tiny_sdxl import make_tiny_sdxl
from tools.tiny_source import tiny_base

FOLDERS = {"unet": "unet/diffusion_pytorch_model", "te1": "text_encoder/model", "te2": "text_encoder_2/model"}


@pytest.fixture(scope="module")
def single() -> BaseWeights:
    """The tiny SDXL as read from a single file."""
    return tiny_base(1)


@pytest.fixture(scope="module")
def folder(single: BaseWeights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in diffusers' layout; its UNet is a half-precision variant."""
    root = tmp_path_factory.mktemp("diffusers")
    for part, name in FOLDERS.items():
        names = diffusers_names(part, single.parts[part])
        variant, dtype = (".fp16", "F16") if part == "unet" else ("", "F32")
        tensors = {names[key]: array for key, array in single.parts[part].items()}
        save_file(tensors, root / f"{name}{variant}.safetensors", dtype=dtype)
    save_file(single.vae, root / "vae/diffusion_pytorch_model.safetensors")
    return root


def test_a_diffusers_folder_gives_the_single_files_weights(single: BaseWeights, folder: Path) -> None:
    loaded = load_weights(str(folder))
    for part in PARTS:
        assert loaded.parts[part].keys() == single.parts[part].keys()
        for key, array in single.parts[part].items():
            expected = array.astype(np.float16).astype(np.float32) if part == "unet" else array
            np.testing.assert_array_equal(loaded.parts[part][key], expected, err_msg=key)
    assert loaded.vae.keys() == single.vae.keys()


def test_an_outline_has_everything_but_the_values(single: BaseWeights, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "base.safetensors"
    make_tiny_sdxl(file, 1)
    for model in (file, folder):
        outline = load_weights(str(model), file_type=OutlineFile)
        for part in PARTS:
            shapes = {key: array.shape for key, array in outline.parts[part].items()}
            assert shapes == {key: array.shape for key, array in single.parts[part].items()}
        assert {key: array.shape for key, array in outline.vae.items()} == {
            key: array.shape for key, array in single.vae.items()
        }
        assert all(0 in array.strides or array.size <= 1 for array in outline.parts["unet"].values())


def test_a_folder_without_weights_says_what_it_looked_for(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    with pytest.raises(ValueError, match=r"no weights in .*unet.*diffusion_pytorch_model\.safetensors"):
        load_weights(str(tmp_path))


def test_the_projection_is_transposed_unless_kohyas_way_is_asked_for(single: BaseWeights) -> None:
    kohya = tiny_base(1, "kohya")
    key = "text_projection.weight"
    np.testing.assert_array_equal(single.parts["te2"][key], kohya.parts["te2"][key].T)


def test_another_vae_replaces_the_models_own(tmp_path: Path) -> None:
    base, other = tmp_path / "base.safetensors", tmp_path / "other.safetensors"
    make_tiny_sdxl(base, 1)
    make_tiny_sdxl(other, 2)
    loaded = load_weights(str(base), vae=str(other))
    with SafetensorsFile(other) as file:
        expected = file.read("first_stage_model.decoder.conv_out.weight")
    np.testing.assert_array_equal(loaded.vae["decoder.conv_out.weight"], expected)


def test_the_layers_that_may_be_adapted_are_kohyas(single: BaseWeights, golden: Path) -> None:
    targets = lora_targets(single)
    names = {part: {t.name for t in targets if t.part == part} for part in PARTS}
    plain = {t.name for t in targets if t.part == "unet" and not t.extended}
    assert plain == set((golden / "sdxl_lora_unet_keys.txt").read_text().split())
    assert names["unet"] == set((golden / "sdxl_lora_unet_conv_keys.txt").read_text().split())
    assert (len(names["te1"]), len(names["te2"])) == (72, 192)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("input_blocks.3.0.op.weight", "down_blocks.0.downsamplers.0.conv.weight"),
        ("input_blocks.8.1.proj_in.bias", "down_blocks.2.attentions.1.proj_in.bias"),
        ("middle_block.2.out_layers.3.weight", "mid_block.resnets.1.conv2.weight"),
        ("output_blocks.2.2.conv.weight", "up_blocks.0.upsamplers.0.conv.weight"),
        ("output_blocks.8.0.skip_connection.weight", "up_blocks.2.resnets.2.conv_shortcut.weight"),
        ("label_emb.0.2.bias", "add_embedding.linear_2.bias"),
    ],
)
def test_unet_names_in_diffusers(key: str, expected: str) -> None:
    assert diffusers_unet_key(key) == expected
