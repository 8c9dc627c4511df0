"""The ``modelspec.*`` texts: what a file is, for model browsers.

https://github.com/Stability-AI/ModelSpec, as far as kohya writes it for a network.
"""

import base64
import mimetypes
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

SPEC_VERSION = "1.0.1"
NETWORK_SUFFIX = "/lora"
DEFAULT_TITLE = "LoRA"
DEFAULT_RESOLUTION = "1024x1024"
TIMESTEP_LIMITS = (0, 1000)
# Flags --metadata_NAME whose text is written as it is, before and after the prediction type.
_TEXTS_BEFORE = ("license", "tags", "merged_from")
_TEXTS_AFTER = ("usage_hint", "thumbnail", "trigger_phrase", "preprocessor", "is_negative_embedding")


def build_model_spec(
    options: Mapping[str, object], date: datetime | None, version: str, architecture: str, implementation: str
) -> dict[str, str]:
    """The texts for a network, in kohya's order; what is not known is left out.

    `options`: training options by their flag's name (metadata_*, output_name, resolution, v_parameterization,
    min_timestep, max_timestep, clip_skip). `date`: of `file_date`. `version`: this program and its version.
    `architecture`, `implementation`: the base model's.
    Raises ValueError for a thumbnail file that cannot be read.
    """
    spec: dict[str, object] = {
        "architecture": architecture + NETWORK_SUFFIX,
        "implementation": implementation,
        "title": options.get("metadata_title") or options.get("output_name") or _default_title(date),
        "resolution": _resolution(options.get("resolution")),
        "sai_model_spec": SPEC_VERSION,
        "description": options.get("metadata_description"),
        "author": options.get("metadata_author"),
        "date": None if date is None else _iso(date),
    }
    spec |= {name: options.get(f"metadata_{name}") for name in _TEXTS_BEFORE}
    spec["prediction_type"] = "v" if options.get("v_parameterization") else "epsilon"
    spec["timestep_range"] = _timestep_range(options.get("min_timestep"), options.get("max_timestep"))
    spec["encoder_layer"] = options.get("clip_skip") or None
    spec |= {name: options.get(f"metadata_{name}") for name in _TEXTS_AFTER}
    spec["thumbnail"] = _data_url(options.get("metadata_thumbnail"))
    spec["implementation_version"] = version
    return {f"modelspec.{name}": str(value) for name, value in spec.items() if value is not None}


def _default_title(date: datetime | None) -> str:
    return DEFAULT_TITLE if date is None else f"{DEFAULT_TITLE}@{date.timestamp()}"


def _iso(date: datetime) -> str:
    """Date and time without fraction and zone, as kohya writes it."""
    return date.replace(microsecond=0, tzinfo=None).isoformat()


def _resolution(resolution: object) -> str:
    """``WIDTHxHEIGHT`` of ``1024``, ``1024,768`` or (1024, 768); 1024 x 1024 when there is none."""
    if resolution is None:
        return DEFAULT_RESOLUTION
    parts = resolution if isinstance(resolution, (list, tuple)) else str(resolution).split(",")
    sides = [int(part) for part in parts]
    return f"{sides[0]}x{sides[-1]}"


def _timestep_range(low: object, high: object) -> str | None:
    if low is None and high is None:
        return None
    return f"{TIMESTEP_LIMITS[0] if low is None else low},{TIMESTEP_LIMITS[1] if high is None else high}"


def _data_url(thumbnail: object) -> str | None:
    """A picture file as a data: URL; one that is given is kept."""
    if thumbnail is None or str(thumbnail).startswith("data:"):
        return None if thumbnail is None else str(thumbnail)
    path = Path(str(thumbnail))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"--metadata_thumbnail {path}: cannot be read: {error.strerror}") from error
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
