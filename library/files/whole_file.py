"""Files that are whole or absent: written beside, read back, then renamed over the old one."""

import contextlib
import io
import os
import secrets
import shutil
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

PROBE_BYTES = 1 << 20
READ_BYTES = 4 << 20
PART = ".part-"
"""What names of unfinished files begin with."""
LEFTOVER_SECONDS = 3600
"""An unfinished file that was not written to for so long is nobody's any more."""


def write_whole(
    path: str | Path, write: Callable[[BinaryIO], None], verify: Callable[[Path], None] | None = None
) -> None:
    """Write a file through `write(stream)` so that `path` holds either all of it or what it held before.

    The stream only appends (no seek, no descriptor): its checksum is compared with the file read back. `verify(file)`
    may look at the finished file and raise; then `path` stays as it was. Raises ValueError when the system refuses.
    """

    def write_to(part: Path) -> None:
        with open(part, "xb") as file:
            stream = _ChecksumStream(file)
            write(cast(BinaryIO, stream))
        _check_read_back(part, stream.size, stream.checksum)

    write_whole_path(path, write_to, verify)


def write_whole_bytes(path: str | Path, data: bytes) -> None:
    """Like `write_whole` for contents at hand. Raises ValueError when the system refuses."""

    def write(stream: BinaryIO) -> None:
        stream.write(data)

    write_whole(path, write)


def write_whole_path(
    path: str | Path, write_to: Callable[[Path], None], verify: Callable[[Path], None] | None = None
) -> None:
    """Like `write_whole` for writers that want a file name: `write_to(part)` gets one with the ending of `path`."""
    path = Path(path)
    part = path.with_name(f"{PART}{secrets.token_hex(8)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_to(part)
        _sync(part)
        if verify is not None:
            verify(part)
        os.replace(part, path)
    except OSError as error:
        raise ValueError(f"{path}: could not be written: {_reason(error)}; nothing was changed there") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    # Some network folders cannot be synchronised; the file is whole all the same.
    with contextlib.suppress(OSError):
        _sync(path.parent)


def remove_leftovers(folder: Path, older_than_s: float = LEFTOVER_SECONDS) -> int:
    """Remove what killed writers of `write_whole` left in a folder; returns the number of files.

    Younger ones may belong to a process that is writing. What cannot be removed stays.
    """
    removed = 0
    for part in folder.glob(f"{PART}*"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > older_than_s:
                part.unlink()
                removed += 1
    return removed


def ensure_writable(folder: str | Path, bytes_needed: int = 0) -> None:
    """Make sure that `bytes_needed` bytes can be written to `folder` (created when absent).

    Writes and removes a real file, because permissions, quotas and full disks show only then. Raises ValueError.
    """
    folder = Path(folder)
    probe = folder / f"{PART}{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with open(probe, "xb") as stream:
                stream.write(bytes(max(1, min(PROBE_BYTES, bytes_needed))))
            _sync(probe)
        finally:
            probe.unlink(missing_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise ValueError(f"{folder}: cannot be written to: {_reason(error)}; choose another folder") from error
    if free < bytes_needed:
        raise ValueError(
            f"{folder}: {_size(bytes_needed)} are needed, {_size(free)} are free; "
            "make room or choose a folder on another disk"
        )


class _ChecksumStream(io.RawIOBase):
    """Appends to a file, and knows the size and CRC-32 of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self.size = 0
        self.checksum = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size

    def write(self, data: object) -> int:
        with memoryview(data) as view, view.cast("B") as flat:  # type: ignore[arg-type]
            self._file.write(flat)
            self.size += len(flat)
            self.checksum = zlib.crc32(flat, self.checksum)
            return len(flat)


def _check_read_back(path: Path, size: int, checksum: int) -> None:
    _sync(path)
    found_size, found_checksum = 0, 0
    with open(path, "rb") as stream:
        while chunk := stream.read(READ_BYTES):
            found_size += len(chunk)
            found_checksum = zlib.crc32(chunk, found_checksum)
    if (found_size, found_checksum) != (size, checksum):
        raise OSError(f"reading it back gave {found_size} bytes that are not the {size} bytes written")


def _sync(path: Path) -> None:
    """Force a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
