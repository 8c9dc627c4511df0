"""Hashes of large files are remembered, and only for files that are as they were."""

import hashlib
import os
from pathlib import Path

import pytest

from library.files import hash_memory
from library.files.hash_memory import remembered_sha256


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read whole."""
    read: list[str] = []
    whole = hash_memory.file_sha256

    def counted(path: str | Path) -> str:
        read.append(str(path))
        return whole(path)

    monkeypatch.setattr(hash_memory, "file_sha256", counted)
    monkeypatch.setattr(hash_memory, "is_settled", lambda state: True)
    return read


def test_an_unchanged_file_is_read_once(tmp_path: Path, reads: list[str]) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    expected = hashlib.sha256(b"weights").hexdigest()
    assert [remembered_sha256(file), remembered_sha256(file)] == [expected, expected]
    assert len(reads) == 1


def test_a_changed_file_of_the_same_size_and_time_is_read_again(tmp_path: Path, reads: list[str]) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    remembered_sha256(file)
    file.write_bytes(b"another")
    os.utime(file, ns=times)
    assert remembered_sha256(file) == hashlib.sha256(b"another").hexdigest()
    assert len(reads) == 2


def test_a_file_just_written_is_not_remembered(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    remembered_sha256(file)
    assert not (tmp_path / "cache").exists()


def test_a_damaged_memory_counts_as_empty(tmp_path: Path, reads: list[str]) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    remembered_sha256(file)
    memory = next((tmp_path / "cache").rglob("*.json"))
    for damage in (b"", b"[1]", b"\xff", b'{"x": 3}'):
        memory.write_bytes(damage)
        assert remembered_sha256(file) == hashlib.sha256(b"weights").hexdigest()


def test_what_is_no_file_is_said_as_before(tmp_path: Path) -> None:
    assert remembered_sha256(tmp_path / "nowhere") == "NOFILE"
    assert remembered_sha256(tmp_path) == "IsADirectory"


def test_a_cache_that_cannot_be_written_costs_nothing(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "plain"))
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    assert remembered_sha256(file) == hashlib.sha256(b"weights").hexdigest()
