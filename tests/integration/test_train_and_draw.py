"""Train with the real command, look at the file, draw with it."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from library.device.mindspore_ckpt import load_ckpt
from library.files.safetensors_utils import SafetensorsFile
from library.runs.interrupt import INTERRUPTED
from tests.integration.conftest import ROOT, Command

pytestmark = pytest.mark.slow

COMMON = ("--network_module=networks.lora", "--learning_rate=1e-3", "--seed=5")


def train(run: Command, tiny: Path, data: Path, out: Path, *arguments: str) -> str:
    """Train; returns what was logged."""
    done = run(
        "sdxl_train_network.py",
        f"--pretrained_model_name_or_path={tiny}",
        f"--dataset_config={data}",
        f"--output_dir={out}",
        *arguments,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.fixture(scope="module")
def trained(run: Command, tiny: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA trained for four steps, saved once on the way."""
    out = tmp_path_factory.mktemp("trained")
    options = ("--network_dim=4", "--network_train_unet_only", "--max_train_steps=4", "--save_every_n_steps=2")
    log = train(run, tiny, data, out, *COMMON, *options, "--output_name=a")
    assert "722 layers" in log
    return out / "a.safetensors"


def test_the_file_has_kohyas_keys_and_metadata(trained: Path) -> None:
    with SafetensorsFile(trained) as file:
        keys = file.keys()
        assert len(keys) == 3 * 722
        assert file.metadata["ss_network_module"] == "networks.lora"
        assert file.metadata["ss_steps"] == "4"
        assert len(file.metadata["sshs_model_hash"]) == 64
        ups = [key for key in keys if key.endswith("lora_up.weight")]
        assert all(file.read(key).any() for key in ups), "every layer was trained"
    assert (trained.parent / "a-step00000002.safetensors").is_file()
    assert not list(trained.parent.glob(".part*"))


def test_the_same_seed_gives_the_same_bytes(
    run: Command, tiny: Path, data: Path, trained: Path, tmp_path: Path
) -> None:
    options = ("--network_dim=4", "--network_train_unet_only", "--max_train_steps=4", "--save_every_n_steps=2")
    train(run, tiny, data, tmp_path, *COMMON, *options, "--output_name=a", "--max_data_loader_n_workers=0")
    assert (tmp_path / "a.safetensors").read_bytes() == trained.read_bytes()


def test_ctrl_c_saves_what_was_trained(tiny: Path, data: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    command = [sys.executable, str(ROOT / "sdxl_train_network.py"), f"--pretrained_model_name_or_path={tiny}"]
    command += [f"--dataset_config={data}", f"--output_dir={tmp_path}", "--output_name=a", *COMMON]
    with log.open("w") as output:
        options = ("--network_dim=4", "--network_train_unet_only", "--max_train_steps=5000")
        process = subprocess.Popen([*command, *options], stderr=output, cwd=ROOT)
        while "avr_loss" not in log.read_text() and process.poll() is None:  # the bar, after the first step
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(300) == INTERRUPTED
    said = re.search(r"interrupted after (\d+) steps? of 5000, saved (.*)$", log.read_text().strip())
    assert said, log.read_text()[-2000:]
    assert said[2] == str(tmp_path / f"a-step{int(said[1]):08d}.safetensors")
    with SafetensorsFile(said[2]) as file:
        keys = file.keys()
        assert file.metadata["ss_steps"] == said[1]
        assert any(file.read(key).any() for key in keys if key.endswith("lora_up.weight"))
    assert [path.name for path in tmp_path.glob("*.safetensors")] == [Path(said[2]).name]


def test_the_guides_command_works_as_it_stands(run: Command, tiny: Path, data: Path, tmp_path: Path) -> None:
    arguments = """--network_module=networks.lora --network_alpha=256 --network_dim=256 --save_model_as=ckpt
        --learning_rate=1e-4 --network_train_unet_only --network_dropout=0.1 --no_half_vae --lr_scheduler=constant
        --optimizer_type=AdamW --optimizer_args weight_decay=0.05 betas=0.9,0.98 --max_data_loader_n_workers=0
        --max_train_steps=2 --save_precision=fp32 --save_every_n_steps=1 --gradient_checkpointing --flash_attn
        --min_snr_gamma=5 --noise_offset=0.0357 --adaptive_noise_scale=0.00357 --output_name=guide"""
    log = train(run, tiny, data, tmp_path, *arguments.split())
    assert "--flash_attn" in log
    tensors, metadata = load_ckpt(tmp_path / "guide.ckpt")
    assert len(tensors) == 3 * 722
    assert metadata["ss_network_dim"] == "256"
    assert (tmp_path / "guide-step00000001.ckpt").is_file()


def test_text_encoders_and_convolutions_train_with_accumulation(
    run: Command, tiny: Path, data: Path, tmp_path: Path
) -> None:
    arguments = """--network_dim=4 --network_args conv_dim=4 rank_dropout=0.1 --unet_lr=1e-3 --text_encoder_lr=5e-4
        --gradient_accumulation_steps=2 --max_train_epochs=1 --lr_scheduler=cosine --save_precision=fp16"""
    log = train(run, tiny, data, tmp_path, *COMMON, *arguments.split())
    assert "1052 layers" in log
    with SafetensorsFile(tmp_path / "last.safetensors") as file:
        assert len(file.keys()) == 3 * (788 + 264)
        assert file.dtype("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight") == "F16"
        assert file.read("lora_te2_text_model_encoder_layers_31_mlp_fc1.lora_up.weight").any()


def test_drawing_with_the_lora_differs_and_says_how_it_was_made(
    run: Command, tiny: Path, trained: Path, tmp_path: Path
) -> None:
    arguments = ("--ckpt_path", tiny, "--prompt", "a red circle", "--W", 64, "--H", 64, "--steps", 3, "--seed", 9)
    pictures = {}
    for name, extra in (
        ("without", ()),
        ("merged", ("--lora_weights", f"{trained};3.0")),
        ("beside", ("--lora_weights", f"{trained};1.5", f"{trained};1.5", "--no_merge")),
    ):
        done = run("sdxl_minimal_inference.py", *arguments, "--output_dir", tmp_path / name, *extra)
        assert done.returncode == 0, done.stderr[-3000:]
        (path,) = (tmp_path / name).glob("*.png")
        assert "_9" in path.stem
        pictures[name] = Image.open(path)
        assert "Seed: 9" in pictures[name].text["parameters"]
    pixels = {name: list(picture.convert("RGB").tobytes()) for name, picture in pictures.items()}
    assert pixels["without"] != pixels["merged"]
    assert max(abs(a - b) for a, b in zip(pixels["merged"], pixels["beside"], strict=True)) <= 2
