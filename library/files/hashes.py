"""Hashes by which other tools recognise models and networks."""

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from library.files.safetensors_header import file_order
from library.files.safetensors_utils import serialized, serialized_data, specs_of

READ_BYTES = 4 << 20
# The window of the short hash of stable-diffusion-webui.
WINDOW_BEGIN = 0x100000
WINDOW_BYTES = 0x10000
SHORT_HASH_DIGITS = 8
# What the original writes in place of a hash.
NO_FILE = "NOFILE"
IS_FOLDER = "IsADirectory"


def sshs_hashes(
    tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], dtype: str | None = None
) -> dict[str, str]:
    """``sshs_model_hash`` and ``sshs_legacy_hash`` of a network that is saved with `save_file(..., dtype=dtype)`.

    `metadata` may hold anything; only its ``ss_`` keys count, and only by the length of the header they make.
    """
    return {
        "sshs_model_hash": sshs_model_hash(tensors, dtype),
        "sshs_legacy_hash": sshs_legacy_hash(tensors, metadata, dtype),
    }


def sshs_model_hash(tensors: Mapping[str, np.ndarray], dtype: str | None = None) -> str:
    """SHA-256 (64 hex digits) of the file's data, header left out."""
    specs = specs_of(tensors, dtype)
    digest = hashlib.sha256()
    for chunk in serialized_data(specs, ((name, tensors[name]) for name in file_order(specs))):
        digest.update(chunk)
    return digest.hexdigest()


def sshs_legacy_hash(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], dtype: str | None = None) -> str:
    """First 8 hex digits of the SHA-256 of 64 KiB at 1 MiB of the file as saved with the ``ss_`` metadata only."""
    specs = specs_of(tensors, dtype)
    kept = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    return _window_hash(serialized(specs, ((name, tensors[name]) for name in file_order(specs)), kept))


def model_hash(path: str | Path) -> str:
    """The short hash of a model file: 8 hex digits of 64 KiB at 1 MiB; `NO_FILE` or `IS_FOLDER` without one."""
    try:
        with open(path, "rb") as stream:
            stream.seek(WINDOW_BEGIN)
            return hashlib.sha256(stream.read(WINDOW_BYTES)).hexdigest()[:SHORT_HASH_DIGITS]
    except FileNotFoundError:
        return NO_FILE
    except IsADirectoryError:
        return IS_FOLDER


def file_sha256(path: str | Path) -> str:
    """SHA-256 (64 hex digits) of a whole file; `NO_FILE` or `IS_FOLDER` without one."""
    try:
        with open(path, "rb") as stream:
            digest = hashlib.sha256()
            while chunk := stream.read(READ_BYTES):
                digest.update(chunk)
            return digest.hexdigest()
    except FileNotFoundError:
        return NO_FILE
    except IsADirectoryError:
        return IS_FOLDER


def _window_hash(chunks: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    position = 0
    for chunk in chunks:
        digest.update(chunk[max(0, WINDOW_BEGIN - position) : max(0, WINDOW_BEGIN + WINDOW_BYTES - position)])
        position += len(chunk)
        if position >= WINDOW_BEGIN + WINDOW_BYTES:
            break
    return digest.hexdigest()[:SHORT_HASH_DIGITS]


def arrays_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """BLAKE2b of arrays with their names, types and shapes, 32 hex digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {arrays[name].shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def values_digest(weights: Mapping[str, np.ndarray]) -> str:
    """BLAKE2b of a model's float32 values by name, 32 hex digits; shapes do not count, and the tensors share the cores.

    A linear layer and its 1 x 1 convolution have the same values, so that one model has one digest in either layout.
    """

    def digest(name: str) -> bytes:
        values = np.ascontiguousarray(weights[name], np.float32).reshape(-1).view(np.uint8)
        return name.encode() + hashlib.blake2b(values.data, digest_size=16).digest()

    with ThreadPoolExecutor() as pool:
        return hashlib.blake2b(b"".join(pool.map(digest, sorted(weights))), digest_size=16).hexdigest()
