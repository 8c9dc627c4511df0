"""The plan, the report and the first samples, by the real command; no model is opened for them."""

import os
from pathlib import Path

from tests.integration.conftest import Command


def test_dry_run_report_and_samples(tiny: Path, data: Path, run: Command, tmp_path: Path) -> None:
    output, page = tmp_path / "out", tmp_path / "data.html"
    arguments = ["--pretrained_model_name_or_path", tiny, "--dataset_config", data, "--output_dir", output]
    arguments += ["--network_module", "networks.lora", "--seed", 1, "--max_train_epochs", 3]
    done = run("sdxl_train_network.py", *arguments, "--dry_run", "--report", page, "--debug_dataset")
    assert done.returncode == 0, done.stderr
    for expected in (
        "subset  images  repeats  samples",
        "4 batches per epoch",
        "12 steps in 3 epochs",
        "nothing is trained",
        "memory: about 1.",
        "  UNet\n",
    ):
        assert expected in done.stderr
    assert page.read_text(encoding="utf-8").count("<figure>") == 8
    assert os.listdir(output) == ["debug_dataset"]
    assert len(os.listdir(output / "debug_dataset")) == 16


def test_a_dry_run_finds_that_the_base_model_is_missing(data: Path, run: Command, tmp_path: Path) -> None:
    arguments = ["--pretrained_model_name_or_path", tmp_path / "no.safetensors", "--dataset_config", data]
    arguments += ["--output_dir", tmp_path / "out", "--network_module", "networks.lora", "--dry_run"]
    done = run("sdxl_train_network.py", *arguments)
    assert done.returncode == 1 and "no.safetensors" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_dry_run_of_broken_data_fails(run: Command, tmp_path: Path) -> None:
    config = tmp_path / "data.toml"
    config.write_text("[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = '/not/there'\n")
    arguments = ["--pretrained_model_name_or_path", "x", "--dataset_config", config, "--output_dir", tmp_path / "out"]
    done = run("sdxl_train_network.py", *arguments, "--network_module", "networks.lora", "--dry_run")
    assert done.returncode == 1 and "'/not/there' does not exist" in done.stderr
    assert not (tmp_path / "out").exists()
