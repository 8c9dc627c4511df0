"""Shared fixtures: where the recorded reference data are."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def golden_folder() -> Path | None:
    """GOLDEN_DIR, else ../shared/golden beside the checkout, else None."""
    places = [os.environ.get("GOLDEN_DIR"), ROOT.parent / "shared" / "golden"]
    return next((Path(place) for place in places if place and Path(place).is_dir()), None)


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the project remembers between runs goes to a folder of the tests' own."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of recorded reference data; skips where it is absent, except in CI."""
    folder = golden_folder()
    if folder is None:
        message = "no recorded reference data: set GOLDEN_DIR, or put them at ../shared/golden"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def device() -> None:
    """MindSpore set up on the CPU; for tests that compute."""
    from library.device.setup import init_device

    init_device("CPU")
