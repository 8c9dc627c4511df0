"""Caches through the real commands: trained the same as without, made by the tools, found stale."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from library.files.safetensors_utils import SafetensorsFile
from library.settings.flag_groups import CacheArgs
from tests.integration.conftest import Command
from tools import cache_options

pytestmark = pytest.mark.slow

DISK = ("--cache_latents_to_disk", "--cache_text_encoder_outputs_to_disk")


@pytest.fixture(scope="module")
def own_data(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture set whose captions stay the same, in a folder that caches may be written to."""
    folder = tmp_path_factory.mktemp("cached") / "data"
    shutil.copytree(data.parent, folder)
    text = data.read_text(encoding="utf-8").replace(data.parent.as_posix(), folder.as_posix())
    config = folder / data.name
    config.write_text(text.replace("shuffle_caption = true", "shuffle_caption = false"), encoding="utf-8")
    return config


def train(run: Command, tiny: Path, config: Path, out: Path, *extra: str) -> str:
    """Train one step operation by operation (compiling takes longer); returns what was logged."""
    options = """--network_module=networks.lora --network_dim=2 --network_train_unet_only --learning_rate=1e-3 --seed=5
        --max_train_steps=1 --flip_aug --jit=off"""
    paths = (f"--pretrained_model_name_or_path={tiny}", f"--dataset_config={config}", f"--output_dir={out}")
    done = run("sdxl_train_network.py", *paths, *options.split(), *extra)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def tensors(out: Path) -> dict[str, bytes]:
    with SafetensorsFile(out / "last.safetensors") as file:
        return {key: file.read(key).tobytes() for key in file}


@pytest.fixture(scope="module")
def online(run: Command, tiny: Path, own_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What is trained without caches."""
    out = tmp_path_factory.mktemp("online")
    train(run, tiny, own_data, out)
    return tensors(out)


def tool(run: Command, name: str, tiny: Path, config: Path) -> str:
    arguments = (f"--pretrained_model_name_or_path={tiny}", f"--dataset_config={config}", "--sdxl", "--flip_aug")
    done = run(f"tools/{name}.py", *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def test_the_tools_fill_what_the_trainer_uses_and_it_trains_the_same(
    run: Command, tiny: Path, own_data: Path, online: dict[str, bytes], tmp_path: Path
) -> None:
    images = own_data.parent / "images"
    assert "4 are made now" in tool(run, "cache_latents", tiny, own_data)
    assert "4 are made now" in tool(run, "cache_text_encoder_outputs", tiny, own_data)
    assert len(list(images.glob("*_sdxl.npz"))) == len(list(images.glob("*_te_outputs.npz"))) == 4

    damaged, *_ = sorted(images.glob("*_sdxl.npz"))
    damaged.write_bytes(damaged.read_bytes()[:-100])
    log = tool(run, "cache_latents", tiny, own_data)
    assert "3 of 4 in the cache, 1 is made now, 1 of them again" in log
    assert f"{damaged.name}: cannot be read" in log
    source, foreign, *_ = sorted(images.glob("*_te_outputs.npz"))
    shutil.copy(source, foreign)
    log = tool(run, "cache_text_encoder_outputs", tiny, own_data)
    assert "3 of 4 in the cache, 1 is made now, 1 of them again" in log
    assert f"{foreign.name}: it was made from something else (different: caption)" in log

    log = train(run, tiny, own_data, tmp_path, *DISK)
    assert log.count("4 of 4 in the cache, 0 are made now") == 2
    assert tensors(tmp_path) == online, "bit for bit"


def test_caches_in_memory_train_the_same(
    run: Command, tiny: Path, own_data: Path, online: dict[str, bytes], tmp_path: Path
) -> None:
    train(run, tiny, own_data, tmp_path, "--cache_latents", "--cache_text_encoder_outputs")
    assert tensors(tmp_path) == online
    with SafetensorsFile(tmp_path / "last.safetensors") as file:
        assert file.metadata["ss_cache_latents"] == "True"
        assert np.isfinite(file.read(next(iter(file)))).all()


def test_what_cannot_be_cached_is_refused_before_anything_is_read(
    run: Command, tiny: Path, data: Path, tmp_path: Path
) -> None:
    options = ("--network_module=networks.lora", "--network_train_unet_only", "--random_crop", "--max_train_steps=1")
    paths = (f"--pretrained_model_name_or_path={tiny}", f"--dataset_config={data}", f"--output_dir={tmp_path}")
    done = run("sdxl_train_network.py", *paths, *options, *DISK, timeout=120)
    assert done.returncode == 1
    assert "2 problems with the caches asked for" in done.stderr
    assert "random_crop" in done.stderr
    assert "shuffle_caption" in done.stderr


def test_ctrl_c_is_told_in_a_line(
    tiny: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cache_options, "setup_logging", lambda _: None)
    paths = [f"--pretrained_model_name_or_path={tiny}", f"--dataset_config={data}"]
    args = cache_options.read_options(paths, "Encode.", CacheArgs(cache_latents=True, cache_latents_to_disk=True))
    assert cache_options.run_tool(args, work) == cache_options.INTERRUPTED
    assert "the same command goes on" in capsys.readouterr().err
