"""Safetensors files: read straight into the wanted number format, written whole, both in bounded memory."""

import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import DTypeLike

from library.files.number_formats import RANK, SLICE_ITEMS, STORED_AS, decode, encode, format_of, native_type
from library.files.safetensors_header import TensorSpec, encode_header, file_order, read_header
from library.files.whole_file import write_whole


class SafetensorsFile:
    """A safetensors file opened for reading; a context manager.

    Opening reads and checks the header only, and raises ValueError when it is not a whole, sound safetensors file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise ValueError(f"{path}: no such file")
        if not self.path.is_file():
            raise ValueError(f"{path}: this is a folder, a safetensors file is needed")
        try:
            with open(self.path, "rb") as stream:
                size = self.path.stat().st_size
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if size else None
        except OSError as error:
            raise ValueError(f"{path}: could not be opened: {error.strerror or error}") from error
        try:
            with memoryview(self._map or b"") as view:
                self._header = read_header(self.path, view, size)
        except ValueError:
            self.close()
            raise
        self.metadata: dict[str, str] = self._header.metadata
        """The texts stored beside the tensors; empty when there are none."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the memory map back; tensors already read stay valid."""
        if self._map is not None:
            self._map.close()
            self._map = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._header.specs)

    def __contains__(self, name: object) -> bool:
        return name in self._header.specs

    def keys(self) -> list[str]:
        """Names of the tensors, in the order of the file."""
        return list(self._header.specs)

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Number format and shape per tensor, in the order of the file."""
        return dict(self._header.specs)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor. Raises KeyError for one that is not there."""
        return self._header.specs[name].shape

    def dtype(self, name: str) -> str:
        """Number format of a tensor in the file: ``F16``, ``BF16``, ``F32``, ``I64``, ..."""
        return self._header.specs[name].dtype

    def read(self, name: str, dtype: DTypeLike | None = None) -> np.ndarray:
        """A tensor in memory of its own, converted to `dtype` (None: its own type, float32 for BF16).

        Converts slice by slice and gives each slice's pages back, so that the peak is the result and some 10 MB.
        """
        spec = self._header.specs[name]
        out = np.empty(spec.shape, native_type(spec.dtype) if dtype is None else np.dtype(dtype))
        flat = out.reshape(-1)
        for begin, stored in self._slices(name):
            decode(stored, spec.dtype, flat[begin : begin + stored.size])
        return out

    def _slices(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """Position and stored numbers of each slice of a tensor, read from the map, whose pages are then released."""
        assert self._map is not None, "the file is closed"
        spec, offset = self._header.specs[name], self._header.offsets[name]
        stored_type = STORED_AS[spec.dtype]
        for begin in range(0, spec.count, SLICE_ITEMS):
            count = min(SLICE_ITEMS, spec.count - begin)
            start = offset + begin * stored_type.itemsize
            yield begin, np.frombuffer(self._map, stored_type, count, start)
            _release(self._map, start, start + count * stored_type.itemsize)


def save_file(
    tensors: Mapping[str, np.ndarray],
    path: str | Path,
    metadata: Mapping[str, str] | None = None,
    dtype: str | None = None,
) -> None:
    """Write tensors to a safetensors file, whole or not at all.

    With `dtype` (``F32``, ``F16``, ``BF16``) every tensor is stored in that format, otherwise each in its own. The
    bytes are those of the safetensors library, but for the order of the metadata: there it changes from run to run,
    here it is the mapping's. Raises ValueError.
    """
    specs = specs_of(tensors, dtype)
    save_stream(path, specs, ((name, tensors[name]) for name in file_order(specs)), metadata)


def save_stream(
    path: str | Path,
    specs: Mapping[str, TensorSpec],
    tensors: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a file of any size holding one tensor at a time.

    `tensors` gives (name, array) in the order of `file_order(specs)`; arrays are converted to the format of their spec.
    The file is whole or absent. Raises ValueError when it cannot be written.
    """

    def write(stream: BinaryIO) -> None:
        stream.writelines(serialized(specs, tensors, metadata))

    write_whole(path, write, _same_header(specs, metadata))


def serialized(
    specs: Mapping[str, TensorSpec], tensors: Iterable[tuple[str, np.ndarray]], metadata: Mapping[str, str] | None
) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file in pieces of a few MB: length and header first, then the data."""
    yield encode_header(specs, metadata)
    yield from serialized_data(specs, tensors)


def serialized_data(
    specs: Mapping[str, TensorSpec], tensors: Iterable[tuple[str, np.ndarray]]
) -> Iterator[bytes | memoryview]:
    """The bytes after the header. `tensors` must come in `file_order(specs)` and have the specs' shapes."""
    expected = iter(file_order(specs))
    for name, array in tensors:
        assert name == next(expected, None), f"{name} is not the tensor whose turn it is in the file's order"
        assert array.shape == specs[name].shape, f"{name} has shape {array.shape}, its spec says {specs[name].shape}"
        flat = array.reshape(-1)
        for begin in range(0, flat.size, SLICE_ITEMS):
            part = np.ascontiguousarray(encode(flat[begin : begin + SLICE_ITEMS], specs[name].dtype))
            yield part.data.cast("B")
    missing = next(expected, None)
    assert missing is None, f"{missing} was not given"


def specs_of(tensors: Mapping[str, np.ndarray], dtype: str | None = None) -> dict[str, TensorSpec]:
    """Specs of arrays as they are, or all in number format `dtype`. Raises ValueError for formats that do not exist."""
    if dtype is not None and dtype not in RANK:
        raise ValueError(f"{dtype} is no number format of safetensors; allowed: {', '.join(RANK)}")
    return {name: TensorSpec(dtype or format_of(array), array.shape) for name, array in tensors.items()}


def _same_header(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str] | None) -> Callable[[Path], None]:
    """A check that a written file opens again and says the same of its contents."""

    def verify(path: Path) -> None:
        with SafetensorsFile(path) as file:
            if file.specs != dict(specs) or file.metadata != dict(metadata or {}):
                raise OSError("reading it back gave another header than was written")

    return verify


def _release(mapped: mmap.mmap, start: int, end: int) -> None:
    """Tell the system that these bytes of the map are done with: they are no longer this process's memory."""
    first = start - start % mmap.PAGESIZE
    mapped.madvise(mmap.MADV_DONTNEED, first, end - first)
