"""NumPy's .npz files, written whole and read with suspicion: they may come from anywhere.

An .npz is a zip of .npy members. Nothing in it is unpickled, and nothing is allocated or unpacked before its size is
known to be allowed.
"""

import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from library.files.whole_file import write_whole

MAX_MEMBERS = 256
MAX_HEADER_BYTES = 4096
"""A member's header is a short dictionary; NumPy's own are about 100 bytes."""
ZIP_OVERHEAD = 1 << 20
"""Bytes that a file may have beyond its arrays: headers and the zip's list of members."""
_PLAIN_KINDS = "fiubUS"
"""Types that are read: numbers, yes and no, text. Objects would be pickles."""
_BROKEN = (
    *(OSError, EOFError, RuntimeError, KeyError, struct.error, zlib.error),  # of zipfile
    *(ValueError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError),  # of NumPy's reader of headers
)
_READ_HEADER = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def write_npz(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name, uncompressed as `numpy.savez` does; equal arrays give equal bytes.

    Raises ValueError when the system refuses; then `path` holds what it held before.
    """
    in_order = {name: np.asarray(arrays[name]) for name in sorted(arrays)}
    assert not any(array.dtype.hasobject for array in in_order.values()), "only plain arrays are written"
    write_whole(path, lambda stream: np.savez(stream, **in_order))


def read_npz(path: str | Path, max_bytes: int) -> dict[str, np.ndarray]:
    """All arrays of a file by name, in the machine's byte order.

    `max_bytes`: what they may take together, unpacked. Raises ValueError that names the file when it is missing, not
    whole, larger, or holds anything but plain arrays.
    """
    try:
        if Path(path).stat().st_size > max_bytes + ZIP_OVERHEAD:
            raise ValueError(f"it is larger than the {max_bytes} bytes allowed here")
        with zipfile.ZipFile(path) as archive:
            return {info.filename.removesuffix(".npy"): _read(archive, info) for info in _members(archive, max_bytes)}
    except (zipfile.BadZipFile, *_BROKEN) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ValueError(f"{path}: cannot be read as an .npz file: {reason}") from error


def _members(archive: zipfile.ZipFile, max_bytes: int) -> list[zipfile.ZipInfo]:
    members = archive.infolist()
    unpacked = sum(info.file_size for info in members)
    if len(members) > MAX_MEMBERS:
        raise ValueError(f"it has {len(members)} members, {MAX_MEMBERS} are allowed")
    if unpacked > max_bytes + ZIP_OVERHEAD:
        raise ValueError(f"it would unpack to {unpacked} bytes, {max_bytes} are allowed here")
    names = [info.filename for info in members]
    strange = [name for name in names if not name.endswith(".npy") or names.count(name) > 1]
    if strange:
        raise ValueError(f"member {strange[0]!r} is no array, or there twice")
    return members


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    data = archive.read(info)
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version not in _READ_HEADER:
        raise ValueError(f"member {info.filename!r} has format {version}, which is not known")
    shape, fortran_order, dtype = _READ_HEADER[version](stream, max_header_size=MAX_HEADER_BYTES)  # type: ignore[call-arg]
    if dtype.hasobject or dtype.kind not in _PLAIN_KINDS:
        raise ValueError(f"member {info.filename!r} holds {dtype} (a pickle may run code); only plain numbers are read")
    rest = len(data) - stream.tell()
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != rest:
        raise ValueError(f"member {info.filename!r} says it is {dtype} of shape {shape}, and {rest} bytes follow")
    flat = np.frombuffer(data, dtype, offset=stream.tell()).astype(dtype.newbyteorder("="))
    return flat.reshape(shape, order="F" if fortran_order else "C")
