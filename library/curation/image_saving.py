"""Writing pictures to files."""

from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

_OPTIONS: MappingProxyType[str, dict[str, Any]] = MappingProxyType(
    {".png": {}, ".jpg": {"subsampling": 0}, ".webp": {"method": 4}}
)
SAVED_ENDINGS = tuple(_OPTIONS)


def save_rgb(path: Path, image_HWC: np.ndarray, quality: int = 95) -> None:
    """Write a uint8 [H, W, 3] picture in the format of the name's ending; `quality` up to 100 for JPEG and WebP."""
    options = dict(_OPTIONS[path.suffix])
    if path.suffix != ".png":
        options["quality"] = quality
    Image.fromarray(np.ascontiguousarray(image_HWC)).save(path, **options)
