"""The real commands on the tiny model: a checkpoint, a picture set, and a way to run a script."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.make_demo_data import make_demo_data
from tools.make_tiny_sdxl import make_tiny_sdxl

ROOT = Path(__file__).resolve().parents[2]
Command = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SDXL checkpoint."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    make_tiny_sdxl(path, 1)
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The TOML of a captioned picture set with one bucket (each more costs a compile)."""
    folder = tmp_path_factory.mktemp("data")
    config = make_demo_data(folder, 4, 64)
    text = config.read_text(encoding="utf-8").replace("enable_bucket = true", "enable_bucket = false")
    config.write_text(text, encoding="utf-8")
    return config


@pytest.fixture(scope="session")
def run() -> Command:
    """Run a script of the repository as a user would; returns what it printed and its exit code."""

    def call(script: str, *arguments: object, timeout: int = 900) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHONPATH": ""}
        command = [sys.executable, str(ROOT / script), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, cwd=ROOT)

    return call
