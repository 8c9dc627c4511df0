"""MindSpore's own checkpoint format (.ckpt): named tensors and texts, whole or absent."""

from collections.abc import Mapping
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor

from library.files.whole_file import write_whole_path

_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
METADATA_PREFIX = "metadata."
_TYPES = {"F32": ms.float32, "F16": ms.float16, "BF16": ms.bfloat16}


def save_ckpt(tensors: Mapping[str, np.ndarray], path: Path, metadata: Mapping[str, str], dtype: str = "F32") -> None:
    """Write tensors in one number format (``F32``, ``F16``, ``BF16``), and texts under ``metadata.NAME``.

    Raises:
        ValueError: the file cannot be written.
    """
    items = [
        {"name": key, "data": Tensor(np.ascontiguousarray(value, np.float32), _TYPES[dtype])}
        for key, value in tensors.items()
    ]
    texts = {METADATA_PREFIX + key: value for key, value in metadata.items()}

    def write_to(part: Path) -> None:
        ms.save_checkpoint(items, str(part), append_dict=texts)

    def verify(part: Path) -> None:
        found, _ = load_ckpt(part)
        assert set(found) == set(tensors), "the checkpoint read back holds other names"

    write_whole_path(path, write_to, verify)


def load_ckpt(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(tensors in float32, texts) of a MindSpore checkpoint; a scalar comes back with shape (1,).

    Raises:
        ValueError: not MindSpore's format; a torch pickle is never opened.
    """
    with open(path, "rb") as file:
        start = file.read(4)
    if start.startswith(_PICKLE_STARTS):
        raise ValueError(
            f"{path} is a torch pickle, which can run code when opened; convert it to safetensors where you trust it"
        )
    try:
        content = ms.load_checkpoint(str(path))
    except (ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path} is not a whole MindSpore checkpoint: {error}") from error
    tensors = {key: value.asnumpy().astype(np.float32) for key, value in content.items() if isinstance(value, Tensor)}
    texts = {
        key.removeprefix(METADATA_PREFIX): value
        for key, value in content.items()
        if key.startswith(METADATA_PREFIX) and isinstance(value, str)
    }
    return tensors, texts
