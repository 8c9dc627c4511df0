"""Shared fixtures: the recordings of the original, a cache folder of the tests' own, the device."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the project remembers between runs goes to a folder of the tests' own."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of recordings of the original (``tests/golden/README.md``)."""
    return GOLDEN


@pytest.fixture(scope="session")
def device() -> None:
    """MindSpore set up on the CPU; for tests that compute."""
    from library.device.setup import init_device

    init_device("CPU")
