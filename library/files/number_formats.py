"""The number formats of safetensors files, and conversion between them in slices of bounded size."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

SLICE_ITEMS = 1 << 20  # 4 MB of float32: what a conversion holds besides its input and output

# Name in the file -> NumPy type of its bytes (little endian). BF16 has none: its bytes are handled as uint16.
# Order: the higher a format stands here, the earlier its tensors come in a file (rank of the safetensors library).
STORED_AS: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        "U64": np.dtype("<u8"),
        "I64": np.dtype("<i8"),
        "F64": np.dtype("<f8"),
        "F32": np.dtype("<f4"),
        "U32": np.dtype("<u4"),
        "I32": np.dtype("<i4"),
        "BF16": np.dtype("<u2"),
        "F16": np.dtype("<f2"),
        "U16": np.dtype("<u2"),
        "I16": np.dtype("<i2"),
        "I8": np.dtype("i1"),
        "U8": np.dtype("u1"),
        "BOOL": np.dtype("?"),
    }
)
RANK: Mapping[str, int] = MappingProxyType({name: rank for rank, name in enumerate(STORED_AS)})
_NAME_OF: Mapping[np.dtype[Any], str] = MappingProxyType(
    {stored: name for name, stored in STORED_AS.items() if name != "BF16"}
)
# Every float16 as float32: looking numbers up is 2.5 times as fast as NumPy's conversion.
_HALF_VALUES = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def format_of(array: np.ndarray) -> str:
    """Name of an array's number format: ``F32`` for float32. Raises ValueError where safetensors has none."""
    name = _NAME_OF.get(array.dtype.newbyteorder("<"))
    if name is None:
        raise ValueError(f"arrays of {array.dtype} cannot be stored in a safetensors file; allowed: {', '.join(RANK)}")
    return name


def native_type(name: str) -> np.dtype[Any]:
    """NumPy type that holds the values of a format: its own, and float32 for BF16."""
    return np.dtype(np.float32) if name == "BF16" else STORED_AS[name].newbyteorder("=")


def decode(stored: np.ndarray, name: str, out: np.ndarray) -> None:
    """Values of `stored` (bytes as in a file, format `name`) into `out`, same length, in out's type."""
    if name == "BF16":
        bits = stored.astype(np.uint32)
        bits <<= 16
        out[...] = bits.view(np.float32)
    elif name == "F16" and out.dtype == np.float32:
        np.take(_HALF_VALUES, stored.view(np.uint16), out=out, mode="clip")
    else:
        out[...] = stored


def encode(values: np.ndarray, name: str) -> np.ndarray:
    """A flat array of numbers as the bytes that stand for them in format `name`."""
    if name == "BF16":
        return _bfloat16_bits(values.astype(np.float32, copy=False))
    return values.astype(STORED_AS[name], copy=False)


def _bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """float32 to the upper 16 bits, rounded to nearest, ties to even; NaN stays NaN."""
    bits = values.view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))
    rounded >>= 16
    quiet_nan = (bits >> 16) | 0x40
    return np.where(np.isnan(values), quiet_nan, rounded).astype("<u2")
