"""The header of a safetensors file: reading it with suspicion, writing it as the safetensors library does.

Layout: 8 bytes little-endian header length, the header as JSON padded with spaces to a multiple of 8, the data.
The header maps each tensor to dtype, shape and data_offsets (begin, end, counted from the start of the data), and
``__metadata__`` to texts. https://github.com/huggingface/safetensors#format
"""

import codecs
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from library.files.number_formats import RANK, STORED_AS

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the safetensors library refuses longer ones too
METADATA_KEY = "__metadata__"
MAX_NAMED = 5

# First bytes of what people have instead of a safetensors file, and what to do about it.
_PICKLE_ADVICE = "such files are never opened, because they can run code: convert it to safetensors where it came from"
_LOOKALIKES = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself; fetch it with: git lfs pull"),
    (b"PK\x03\x04", f"a zip archive, most likely a torch .ckpt or .pt with a pickle in it; {_PICKLE_ADVICE}"),
    *((bytes([0x80, protocol]), f"a pickle file; {_PICKLE_ADVICE}") for protocol in (2, 3, 4, 5)),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"GGUF", "a GGUF file; take the safetensors version of the model"),
)


@dataclass(frozen=True)
class TensorSpec:
    """What the header says of one tensor."""

    dtype: str
    """Number format: ``F32``, ``F16``, ``BF16``, ``I64``, ..."""
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Size of the data in bytes."""
        return self.count * STORED_AS[self.dtype].itemsize


@dataclass(frozen=True)
class Header:
    """A checked header."""

    specs: dict[str, TensorSpec]
    """Per tensor, in the order of the data."""
    offsets: dict[str, int]
    """Per tensor, where its data begins, from the start of the file."""
    metadata: dict[str, str]


def file_order(specs: Mapping[str, TensorSpec]) -> list[str]:
    """Names in the order the safetensors library stores them: number format (widest first), then name."""
    return sorted(specs, key=lambda name: (RANK[specs[name].dtype], name))


def encode_header(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str] | None) -> bytes:
    """Length and header of a file that holds these tensors in `file_order`. Metadata keep their order.

    Raises ValueError for a tensor called ``__metadata__`` and for metadata that are not text.
    """
    if METADATA_KEY in specs:
        raise ValueError(f"no tensor can be called {METADATA_KEY} in a safetensors file")
    entries: dict[str, object] = {}
    if metadata is not None:
        odd = [f"{key!r}: {value!r}" for key, value in metadata.items() if not _is_text(key) or not _is_text(value)]
        if odd:
            raise ValueError(f"metadata of a safetensors file must be text, not {', '.join(odd[:MAX_NAMED])}")
        entries[METADATA_KEY] = dict(metadata)
    begin = 0
    for name in file_order(specs):
        spec = specs[name]
        end = begin + spec.size
        entries[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def read_header(path: Path, view: bytes | memoryview, file_size: int) -> Header:
    """The header of a file whose bytes are `view` (all of it, or its first `file_size` bytes mapped).

    Raises ValueError that says what the file is instead, how much of it is missing, or which entries are wrong.
    """
    start = bytes(view[:64])
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    data_begin = LENGTH_BYTES + length
    if file_size < LENGTH_BYTES + 2 or length > MAX_HEADER_BYTES or start[LENGTH_BYTES : LENGTH_BYTES + 1] != b"{":
        raise ValueError(f"{path}: not a safetensors file: {_what_it_is(start, file_size, length)}")
    if data_begin > file_size:
        raise ValueError(
            f"{path}: cut off: its header alone needs {data_begin} bytes, the file has {file_size}; download or copy "
            "it again"
        )
    entries = _parse_json(path, bytes(view[LENGTH_BYTES:data_begin]))
    metadata = _checked_metadata(path, entries.pop(METADATA_KEY, None))
    specs, begins, data_size = _checked_tensors(path, entries)
    expected = data_begin + data_size
    if file_size < expected:
        raise ValueError(
            f"{path}: cut off: it should have {expected} bytes and has {file_size}; download or copy it again"
        )
    if file_size > expected:
        raise ValueError(f"{path}: damaged: {file_size - expected} bytes follow its last tensor")
    return Header(specs, {name: data_begin + begin for name, begin in begins.items()}, metadata)


def _what_it_is(start: bytes, file_size: int, length: int) -> str:
    if not file_size:
        return "it is empty"
    for sign, what in _LOOKALIKES:
        if start.startswith(sign):
            return f"it is {what}"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"<"):
        return "it is an HTML or XML page, perhaps an error page saved under its name; download it again"
    if _is_printable(start):
        return f"it is a text file that begins with {start[:24].decode(errors='ignore')!r}"
    if file_size < LENGTH_BYTES + 2:
        return f"it has only {file_size} bytes"
    if length > MAX_HEADER_BYTES:
        return f"its header would be {length} bytes long, allowed are {MAX_HEADER_BYTES}"
    return f"its header does not begin with a brace; the file begins with the bytes {start[:16].hex(' ')}"


def _is_printable(start: bytes) -> bool:
    """Whether bytes, which may end in the middle of a character, are UTF-8 text without control characters."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return not any(byte < 32 and byte not in b"\t\r\n" for byte in start)


def _parse_json(path: Path, text: bytes) -> dict[str, object]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            names = [name for name, _ in pairs]
            twice = sorted({name for name in names if names.count(name) > 1}) if len(names) < 10_000 else []
            raise ValueError(f"names that occur twice: {', '.join(twice[:MAX_NAMED])}")
        return entries

    try:
        entries = json.loads(text.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged: its header cannot be read: {error}") from error
    if type(entries) is not dict:
        raise ValueError(f"{path}: damaged: its header is not a JSON object")
    return entries


def _checked_metadata(path: Path, metadata: object) -> dict[str, str]:
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"{path}: damaged: its {METADATA_KEY} must map texts to texts")
    return metadata


def _checked_tensors(path: Path, entries: Mapping[str, object]) -> tuple[dict[str, TensorSpec], dict[str, int], int]:
    """Specs in data order, where each begins in the data, and the size of the data."""
    problems: list[str] = []
    found: list[tuple[int, int, str, TensorSpec]] = []
    for name, entry in entries.items():
        checked = _checked_entry(entry)
        if isinstance(checked, str):
            problems.append(f"{name}: {checked}")
        else:
            found.append((checked[1], checked[2], name, checked[0]))
    found.sort(key=lambda item: item[:3])
    position = 0
    for begin, end, name, _ in found if not problems else ():
        if begin != position:
            fault = "overlaps the tensor before it" if begin < position else "leaves a gap before it"
            problems.append(f"{name}: data_offsets {[begin, end]} {fault}, which ends at {position}")
        position = max(position, end)
    if problems:
        more = f" and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
        raise ValueError(f"{path}: damaged or not supported: {'; '.join(problems[:MAX_NAMED])}{more}")
    return {name: spec for _, _, name, spec in found}, {name: begin for begin, _, name, _ in found}, position


def _checked_entry(entry: object) -> tuple[TensorSpec, int, int] | str:
    """Spec, begin and end of one header entry, or what is wrong with it."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        return "its entry must have dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in STORED_AS:
        return f"dtype {dtype!r} is not supported; supported are {', '.join(STORED_AS)}"
    if not _are_counts(shape):
        return f"shape {shape!r} is not a list of whole numbers from 0"
    if not _are_counts(offsets) or len(offsets) != 2:
        return f"data_offsets {offsets!r} are not two whole numbers from 0"
    spec = TensorSpec(dtype, tuple(shape))
    begin, end = offsets
    if end - begin != spec.size:
        return f"data_offsets {offsets} span {end - begin} bytes, {dtype} of shape {shape} needs {spec.size}"
    return spec, begin, end


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _is_text(value: object) -> bool:
    return isinstance(value, str)
