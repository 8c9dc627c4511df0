"""What is written beside the weights: ss_ metadata, model spec, hashes, dates."""

import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

from library.files.file_dates import file_date
from library.files.hashes import file_sha256, model_hash, sshs_hashes
from library.files.metadata import (
    RunFacts,
    base_file_metadata,
    build_metadata,
    minimum_metadata,
    stamped,
)
from library.files.safetensors_utils import SafetensorsFile, save_file
from library.files.sai_model_spec import build_model_spec
from tools.table_checks_training import TABLE_CHECKS

OPTIONS = {
    "output_name": "cat",
    "learning_rate": 1e-4,
    "text_encoder_lr": (5e-5, 1e-5),
    "unet_lr": None,
    "gradient_checkpointing": True,
    "gradient_accumulation_steps": 1,
    "max_train_steps": 1600,
    "lr_warmup_steps": 0,
    "lr_scheduler": "constant",
    "network_module": "networks.lora",
    "network_dim": 4,
    "network_alpha": 1,
    "network_dropout": None,
    "network_args": (),
    "mixed_precision": "no",
    "seed": 42,
    "noise_offset": 0.0357,
    "multires_noise_iterations": None,
    "multires_noise_discount": 0.3,
    "adaptive_noise_scale": 0.00357,
    "zero_terminal_snr": False,
    "training_comment": None,
    "max_grad_norm": 1.0,
    "caption_dropout_rate": 0.0,
    "caption_dropout_every_n_epochs": 0,
    "caption_tag_dropout_rate": 0.0,
    "prior_loss_weight": 1.0,
    "min_snr_gamma": 5.0,
    "ip_noise_gamma": None,
    "noise_offset_random_strength": False,
    "ip_noise_gamma_random_strength": False,
    "loss_type": "l2",
}
FACTS = RunFacts(
    num_train_images=20,
    num_reg_images=0,
    num_batches_per_epoch=10,
    num_epochs=160,
    base_model_version="sdxl_base_v1-0",
    optimizer="AdamW()",
)
BASE = ("stable-diffusion-xl-v1-base", "https://github.com/Stability-AI/generative-models")
"""kohya's architecture and implementation of SDXL."""
DATASET = {"ss_datasets": [{"resolution": [64, 64]}], "ss_tag_frequency": {"10_x": {"a b": 2}}, "ss_flip_aug": True}
NOON = datetime(2026, 2, 16, 12, 0, 0, 250_000, tzinfo=UTC)


def build(options: dict[str, object] | None = None, started: datetime | None = None) -> dict[str, str]:
    return build_metadata({**OPTIONS, **(options or {})}, FACTS, DATASET, {"ss_sd_model_name": "base"}, started)


def test_values_are_written_as_the_original_writes_them() -> None:
    metadata = build()
    expected = {
        "ss_learning_rate": "0.0001",
        "ss_text_encoder_lr": "5e-05",  # the first of two, as networks.lora uses
        "ss_unet_lr": "None",
        "ss_network_alpha": "1",
        "ss_gradient_checkpointing": "True",
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_v2": "False",
        "ss_full_fp16": "False",
        "ss_debiased_estimation": "False",
        "ss_huber_schedule": "snr",
        "ss_sd_scripts_commit_hash": "(unknown)",
        "ss_optimizer": "AdamW()",
        "ss_num_train_images": "20",
        "ss_datasets": '[{"resolution": [64, 64]}]',
        "ss_tag_frequency": '{"10_x": {"a b": 2}}',
        "ss_flip_aug": "True",
        "ss_sd_model_name": "base",
    }
    assert {key: metadata[key] for key in expected} == expected
    assert all(isinstance(value, str) for value in metadata.values())
    assert "ss_network_args" not in metadata


def test_order_of_the_keys() -> None:
    keys = list(build(started=NOON))
    assert keys[:4] == ["ss_session_id", "ss_training_started_at", "ss_output_name", "ss_learning_rate"]
    assert keys.index("ss_resize_interpolation") < keys.index("ss_datasets") < keys.index("ss_sd_model_name")
    assert len(keys) == len(set(keys)) == 61 + len(DATASET) + 1


def test_network_args() -> None:
    metadata = build({"network_args": ("conv_dim=4", "conv_alpha = 1"), "network_dropout": 0.1})
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "4", "conv_alpha": "1", "dropout": 0.1}


def test_missing_options_are_all_named() -> None:
    options = {key: value for key, value in OPTIONS.items() if key not in ("seed", "unet_lr")}
    with pytest.raises(ValueError, match="not given: seed, unet_lr"):
        build_metadata(options, FACTS, DATASET, {}, None)


def test_equal_runs_have_equal_metadata_and_others_another_session() -> None:
    assert build() == build()
    assert 0 <= int(build()["ss_session_id"]) < 2**32
    assert build()["ss_session_id"] != build({"seed": 43})["ss_session_id"]
    assert build(started=NOON)["ss_session_id"] == build()["ss_session_id"]


def test_stamps() -> None:
    metadata = build()
    assert stamped(metadata, 100, 2, None) == {**metadata, "ss_steps": "100", "ss_epoch": "2"}
    assert stamped(metadata, 100, 2, NOON)["ss_training_finished_at"] == str(NOON.timestamp())
    assert "ss_steps" not in metadata


def test_minimum_metadata() -> None:
    least = minimum_metadata(stamped(build({"network_args": ("conv_dim=4",)}), 1, 1, NOON))
    assert list(least) == [
        *("ss_v2", "ss_base_model_version", "ss_network_module"),
        *("ss_network_dim", "ss_network_alpha", "ss_network_args"),
    ]


def test_dates() -> None:
    assert file_date(True, {}, lambda: NOON) is None
    assert file_date(False, {}, lambda: NOON) == NOON
    for seed_given in (True, False):
        assert file_date(seed_given, {"SOURCE_DATE_EPOCH": "86400"}) == datetime(1970, 1, 2, tzinfo=UTC)
    with pytest.raises(ValueError, match="SOURCE_DATE_EPOCH=yesterday"):
        file_date(True, {"SOURCE_DATE_EPOCH": "yesterday"})


def test_base_files(tmp_path: Path) -> None:
    model = tmp_path / "base.safetensors"
    model.write_bytes(bytes(0x100000) + b"x" * 0x10000 + b"rest")
    short = hashlib.sha256(b"x" * 0x10000).hexdigest()[:8]
    full = hashlib.sha256(model.read_bytes()).hexdigest()
    assert (model_hash(model), file_sha256(model)) == (short, full)
    assert base_file_metadata(str(model), "stabilityai/sdxl-vae") == {
        "ss_sd_model_hash": short,
        "ss_new_sd_model_hash": full,
        "ss_sd_model_name": "base.safetensors",
        "ss_vae_name": "stabilityai/sdxl-vae",
    }
    assert base_file_metadata(str(tmp_path))["ss_sd_model_hash"] == "IsADirectory"
    assert model_hash(tmp_path / "nowhere") == file_sha256(tmp_path / "nowhere") == "NOFILE"


def test_model_spec() -> None:
    options = {"output_name": "cat", "metadata_author": "me", "min_timestep": 100, "resolution": "768,1024"}
    local = NOON.astimezone(timezone(timedelta(hours=9)))
    assert list(build_model_spec(options, local, "trainer/1", *BASE).items()) == [
        ("modelspec.architecture", "stable-diffusion-xl-v1-base/lora"),
        ("modelspec.implementation", "https://github.com/Stability-AI/generative-models"),
        ("modelspec.title", "cat"),
        ("modelspec.resolution", "768x1024"),
        ("modelspec.sai_model_spec", "1.0.1"),
        ("modelspec.author", "me"),
        ("modelspec.date", "2026-02-16T21:00:00"),
        ("modelspec.prediction_type", "epsilon"),
        ("modelspec.timestep_range", "100,1000"),
        ("modelspec.implementation_version", "trainer/1"),
    ]


def test_model_spec_defaults_and_extras(tmp_path: Path) -> None:
    picture = tmp_path / "thumb.png"
    picture.write_bytes(b"png")
    options = {"v_parameterization": True, "metadata_trigger_phrase": "sks", "metadata_thumbnail": str(picture)}
    spec = build_model_spec(options, None, "v", *BASE)
    assert spec["modelspec.title"] == "LoRA"
    assert spec["modelspec.resolution"] == "1024x1024"
    assert spec["modelspec.prediction_type"] == "v"
    assert spec["modelspec.trigger_phrase"] == "sks"
    assert spec["modelspec.thumbnail"] == f"data:image/png;base64,{base64.b64encode(b'png').decode()}"
    assert "modelspec.date" not in spec
    assert build_model_spec({"resolution": 512}, None, "v", *BASE)["modelspec.resolution"] == "512x512"
    with pytest.raises(ValueError, match="--metadata_thumbnail nowhere: cannot be read"):
        build_model_spec({"metadata_thumbnail": "nowhere"}, None, "v", *BASE)


def test_hashes_of_a_network_of_the_original(golden: Path) -> None:
    """A file that the original wrote (2.8 MB, so that the legacy hash has something to hash) has the hashes it says."""
    with SafetensorsFile(golden / "lora_kohya.safetensors") as file:
        tensors, metadata = {name: file.read(name) for name in file}, file.metadata
    found = sshs_hashes(tensors, metadata)
    assert found == {key: metadata[key] for key in ("sshs_model_hash", "sshs_legacy_hash")}
    wide = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    assert sshs_hashes(wide, metadata, dtype="F16") == found
    assert sshs_hashes(wide, metadata) != found


def test_recorded_hashes(golden: Path) -> None:
    cases = json.loads((golden / "kohya_tables.json").read_text())["sshs_hashes"]
    assert cases
    assert TABLE_CHECKS["sshs_hashes"](cases) == []
    wrong = TABLE_CHECKS["sshs_hashes"]([{**cases[0], "sshs_model_hash": "0"}])
    assert len(wrong) == 1
    assert "int64_alpha sshs_model_hash" in wrong[0]


def test_hash_is_that_of_the_saved_data(tmp_path: Path) -> None:
    tensors = {"b": np.arange(5, dtype=np.float32), "a": np.array(2, np.int64)}
    save_file(tensors, tmp_path / "f", dtype="BF16")
    content = (tmp_path / "f").read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    hashes = sshs_hashes(tensors, {}, dtype="BF16")
    assert hashes == {"sshs_model_hash": hashlib.sha256(data).hexdigest(), "sshs_legacy_hash": "e3b0c442"}
