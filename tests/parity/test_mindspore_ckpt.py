"""MindSpore's checkpoint format: written whole, and read back."""

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from library.device.mindspore_ckpt import load_ckpt, save_ckpt

TENSORS = {"lora_unet_a.lora_up.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save_ckpt(TENSORS, tmp_path / "n.ckpt", {"ss_network_dim": "4"})
    tensors, texts = load_ckpt(tmp_path / "n.ckpt")
    assert np.array_equal(tensors["lora_unet_a.lora_up.weight"], TENSORS["lora_unet_a.lora_up.weight"])
    assert texts["ss_network_dim"] == "4"


def test_a_broken_file_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise ValueError("the file is cut off")

    monkeypatch.setattr(ms, "load_checkpoint", refuse)
    with pytest.raises(ValueError, match="not a whole MindSpore checkpoint"):
        save_ckpt(TENSORS, tmp_path / "n.ckpt", {})
    assert not list(tmp_path.iterdir())
