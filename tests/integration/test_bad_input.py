"""Wrong input: one clear error, a non-zero exit, nothing trained."""

import struct
from pathlib import Path

import numpy as np
import pytest

from library.files.safetensors_utils import SafetensorsFile, save_file
from tests.integration.conftest import Command

ARGUMENTS = ("--network_module=networks.lora", "--network_dim=4", "--network_train_unet_only", "--max_train_steps=1")


def refused(run: Command, base: object, config: object, out: Path, *extra: object) -> str:
    """Train with wrong input; returns the error."""
    paths = (f"--pretrained_model_name_or_path={base}", f"--dataset_config={config}", f"--output_dir={out}")
    done = run("sdxl_train_network.py", *paths, *ARGUMENTS, *extra, timeout=120)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert not list(out.glob("*.safetensors"))
    return done.stderr


def test_no_such_base_model(run: Command, data: Path, tmp_path: Path) -> None:
    assert "no such base model" in refused(run, tmp_path / "nothing.safetensors", data, tmp_path)


def test_a_text_file_named_safetensors(run: Command, data: Path, tmp_path: Path) -> None:
    fake = tmp_path / "in" / "fake.safetensors"
    fake.parent.mkdir()
    fake.write_text("<html>not found</html>" * 50)
    assert "fake.safetensors" in refused(run, fake, data, tmp_path)


def test_a_truncated_base_model(run: Command, tiny: Path, data: Path, tmp_path: Path) -> None:
    short = tmp_path / "in" / "short.safetensors"
    short.parent.mkdir()
    short.write_bytes(tiny.read_bytes()[: tiny.stat().st_size // 2])
    error = refused(run, short, data, tmp_path)
    assert "short.safetensors" in error
    assert str(tiny.stat().st_size) in error.replace(",", "") or "truncated" in error


def test_an_sd15_checkpoint(run: Command, data: Path, tmp_path: Path) -> None:
    old = tmp_path / "in" / "sd15.safetensors"
    names = ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "model.diffusion_model.out.2.bias")
    save_file({name: np.zeros(4, np.float32) for name in names}, old)
    assert "Stable Diffusion 1.x" in refused(run, old, data, tmp_path)


def test_a_base_model_with_a_missing_key_and_one_too_many(run: Command, tiny: Path, data: Path, tmp_path: Path) -> None:
    with SafetensorsFile(tiny) as file:
        tensors = {key: file.read(key) for key in file}
    del tensors["model.diffusion_model.out.2.bias"]
    tensors["model.diffusion_model.strange"] = np.zeros(1, np.float32)
    changed = tmp_path / "in" / "changed.safetensors"
    save_file(tensors, changed)
    error = refused(run, changed, data, tmp_path)
    assert "1 keys missing: model.diffusion_model.out.2.bias" in error
    assert "model.diffusion_model.strange" in error


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("batch_size = 2", "batch_sise = 2", "Did you mean batch_size?"),
        ("batch_size = 2", 'batch_size = "two"', "batch_size"),
        ("num_repeats = 2", "num_repeats = [", "line"),
        ("/images", "/nowhere", "nowhere"),
    ],
    ids=["typo", "wrong type", "syntax", "missing folder"],
)
def test_a_wrong_toml(run: Command, tiny: Path, data: Path, tmp_path: Path, old: str, new: str, said: str) -> None:
    text = data.read_text(encoding="utf-8")
    assert old in text
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(text.replace(old, new), encoding="utf-8")
    assert said in refused(run, tiny, wrong, tmp_path / "out")


def test_a_folder_without_pictures_and_a_broken_picture(run: Command, tiny: Path, data: Path, tmp_path: Path) -> None:
    text, images = data.read_text(encoding="utf-8"), (data.parent / "images").as_posix()
    empty, mixed = tmp_path / "empty", tmp_path / "mixed"
    empty.mkdir()
    mixed.mkdir()
    good = next((data.parent / "images").glob("*.png")).read_bytes()
    (mixed / "good.png").write_bytes(good)
    (mixed / "broken.png").write_bytes(good[: len(good) // 2])
    for folder, said in ((empty, "empty"), (mixed, "broken.png")):
        config = tmp_path / f"{folder.name}.toml"
        config.write_text(text.replace(images, folder.as_posix()), encoding="utf-8")
        assert said in refused(run, tiny, config, tmp_path / "out")


def test_an_output_folder_that_cannot_be(run: Command, tiny: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = run(
        "sdxl_train_network.py",
        f"--pretrained_model_name_or_path={tiny}",
        f"--dataset_config={data}",
        f"--output_dir={tmp_path / 'file' / 'out'}",
        *ARGUMENTS,
        timeout=120,
    )
    assert done.returncode == 1
    assert "file" in done.stderr
    assert "steps:" not in done.stderr


def test_a_flag_that_is_not_built(run: Command, tiny: Path, data: Path, tmp_path: Path) -> None:
    error = refused(run, tiny, data, tmp_path, "--save_state")
    assert "--save_state" in error
    assert len(error.strip().splitlines()) <= 3


def test_a_lora_whose_keys_do_not_fit(run: Command, tiny: Path, tmp_path: Path) -> None:
    lora = tmp_path / "in" / "sd15_lora.safetensors"
    name = "lora_unet_down_blocks_0_attentions_0_proj_in"
    shapes = {"lora_down.weight": (4, 320), "lora_up.weight": (320, 4)}
    save_file({f"{name}.{suffix}": np.zeros(shape, np.float32) for suffix, shape in shapes.items()}, lora)
    done = run(
        "sdxl_minimal_inference.py", "--ckpt_path", tiny, "--lora_weights", f"{lora};1", "--output_dir", tmp_path,
        "--W", 64, "--H", 64, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"1 of its 1 layers are not in this base model: {name}" in done.stderr


def test_a_header_that_claims_too_much(run: Command, data: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "in" / "hostile.safetensors"
    hostile.parent.mkdir()
    hostile.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    assert "hostile.safetensors" in refused(run, hostile, data, tmp_path)
