"""Files are whole or absent, whatever goes wrong while they are written."""

import io
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from library.files.whole_file import ensure_writable, write_whole, write_whole_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writes_what_was_given_and_makes_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.bin"
    write_whole(path, lambda stream: stream.writelines([b"one", b"", memoryview(b"two")]))
    assert path.read_bytes() == b"onetwo"
    assert names(path.parent) == ["file.bin"]


def test_numpy_can_write_into_the_stream(tmp_path: Path) -> None:
    array = np.arange(12.0).reshape(3, 4)
    write_whole(tmp_path / "a.npz", lambda stream: np.savez(stream, array=array))
    np.testing.assert_array_equal(np.load(tmp_path / "a.npz")["array"], array)


def test_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def fail(stream: BinaryIO) -> None:
        stream.write(b"half of the new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, fail)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


def test_failing_check_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def refuse(part: Path) -> None:
        assert part.read_bytes() == b"new"
        raise OSError("no good")

    with pytest.raises(ValueError, match=r"file\.bin: could not be written: no good"):
        write_whole(path, lambda stream: stream.write(b"new"), refuse)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


def test_system_errors_are_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match="file/below: could not be written"):
        write_whole(tmp_path / "file" / "below", lambda stream: None)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told(tmp_path: Path) -> None:
    def write_to(part: Path) -> None:
        part.symlink_to("/dev/full")
        part.write_bytes(b"x" * 100)

    with pytest.raises(ValueError, match="No space left on device"):
        write_whole_path(tmp_path / "file.bin", write_to)
    assert names(tmp_path) == []


def test_what_reads_back_differently_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that keeps half of what it was given: the descriptor is cut just before it is forced to the disk."""
    real_fsync = os.fsync

    def cut(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if Path(name).is_file():
            os.truncate(name, 5)
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", cut)
    with pytest.raises(ValueError, match="reading it back gave 5 bytes that are not the 10 bytes written"):
        write_whole(tmp_path / "file.bin", lambda stream: stream.write(b"0123456789"))
    assert names(tmp_path) == []


def test_stream_has_no_descriptor_and_no_seek(tmp_path: Path) -> None:
    """Writers must not go round the checksum."""

    def write(stream: BinaryIO) -> None:
        with pytest.raises(io.UnsupportedOperation):
            stream.fileno()
        assert not stream.seekable()
        stream.write(b"abc")
        assert stream.tell() == 3

    write_whole(tmp_path / "file.bin", write)


def test_path_writer_gets_the_ending(tmp_path: Path) -> None:
    seen = []

    def write_to(part: Path) -> None:
        seen.append(part)
        part.write_bytes(b"weights")

    write_whole_path(tmp_path / "network.ckpt", write_to)
    assert seen[0].suffix == ".ckpt"
    assert seen[0].parent == tmp_path
    assert (tmp_path / "network.ckpt").read_bytes() == b"weights"
    assert names(tmp_path) == ["network.ckpt"]


def test_ensure_writable_makes_the_folder_and_leaves_it_empty(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "deep"
    ensure_writable(folder, 3_000_000)
    assert names(folder) == []


def test_ensure_writable_tells_how_much_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"1073741824\.00 GiB are needed, .* are free; make room"):
        ensure_writable(tmp_path, 2**60)


def test_ensure_writable_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot be written to: .*; choose another folder"):
        ensure_writable(tmp_path / "file" / "out", 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_ensure_writable_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="Permission denied"):
        ensure_writable(tmp_path, 1)


def test_file_and_folder_are_forced_to_the_disk_around_the_renaming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The contents before the name is there, the list of names after; else a power cut leaves an empty file."""
    done: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        done.append("folder" if path.is_dir() else "file")
        real_fsync(descriptor)

    def replace(part: Path, path: Path) -> None:
        done.append("rename")
        real_replace(part, path)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_whole_path(tmp_path / "file.bin", lambda part: None if part.write_bytes(b"abc") else None)
    assert done == ["file", "rename", "folder"]
