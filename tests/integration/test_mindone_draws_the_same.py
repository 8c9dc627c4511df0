"""mindone's own pipeline draws with a LoRA of ours what we draw: the whole way from text to pixels, computed twice."""

import os
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from library.families.sdxl.targets import lora_targets
from library.files.safetensors_utils import save_file
from networks import lora
from tools.tiny_source import tiny_base

LEVELS = 2
"""Of 255: both round to whole levels, from float32 sums in different orders; one level was seen."""
CHANGE = 20
"""Levels by which the LoRA changes the picture at least; 90 were seen."""
PICTURE = ("--prompt", "a cat, \u00e9t\u00e9", "--seed", 5, "--steps", 2, "--W", 64, "--H", 96, "--guidance_scale", 3)


def generator_of(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


@pytest.fixture
def random_lora(tmp_path: Path) -> Path:
    """A LoRA beside every linear layer of the tiny SDXL of seed 1, none of whose changes is zero."""
    network = lora.create_network(
        lora_targets(tiny_base(1)), network_dim=4, network_alpha=2.0, network_dropout=None, network_args={},
        generator_of=generator_of,
    )  # fmt: skip
    for key, value in network.tensors.items():
        if key.endswith(lora.UP):
            network.tensors[key] = (0.1 * generator_of(key).standard_normal(value.shape)).astype(np.float32)
    path = tmp_path / "ours.safetensors"
    save_file(network.state_dict(), path, {"ss_network_module": "networks.lora"})
    return path


@pytest.mark.slow
def test_mindone_draws_what_we_draw(
    tiny: Path, random_lora: Path, tmp_path: Path, run: Callable[..., subprocess.CompletedProcess]
) -> None:
    def pixels(script: str, folder: str, *loras: str) -> np.ndarray:
        output = tmp_path / folder
        result = run(
            script, "--ckpt_path", tiny, "--output_dir", output, "--device", "CPU", *PICTURE, "--lora_weights", *loras
        )
        assert result.returncode == 0, result.stderr
        (name,) = os.listdir(output)
        with Image.open(output / name) as picture:
            assert picture.size == (64, 96)
            return np.asarray(picture).astype(int)

    with_lora = f"{random_lora};0.7"
    theirs = pixels("tools/draw_with_mindone.py", "theirs", with_lora)
    ours = pixels("sdxl_minimal_inference.py", "ours", with_lora)
    assert np.abs(theirs - ours).max() <= LEVELS
    assert np.abs(ours - pixels("sdxl_minimal_inference.py", "plain")).max() > CHANGE


def test_a_file_that_is_not_there_is_named(run: Callable[..., subprocess.CompletedProcess]) -> None:
    result = run("tools/draw_with_mindone.py", "--ckpt_path", "x.safetensors", "--lora_weights", "none.safetensors;1")
    assert result.returncode == 2
    assert "none.safetensors: there is no such file" in result.stderr
