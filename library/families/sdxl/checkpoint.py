"""SDXL base models: from a single file or a diffusers folder to named weights, and on to tensors and a layout.

Every tensor is read once, straight into the type it is kept in.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import DTypeLike

from library.families.base import BaseWeights
from library.families.sdxl.keys import PARTS, Destination, diffusers_names, single_file_destinations
from library.families.sdxl.shapes import (
    TEXT_1_PREFIX,
    TEXT_2_PREFIX,
    UNET_PREFIX,
    VAE_PREFIX,
    SdxlConfig,
    checkpoint_shapes,
)
from library.files.safetensors_utils import SafetensorsFile
from library.models.base_model_files import VAE_FOLDER, find_base_model, folder_files

logger = logging.getLogger(__name__)

MAX_LISTED = 8
OPTIONAL_KEYS = ("logit_scale", "position_ids")
TEXT_KEYS = (TEXT_1_PREFIX, TEXT_2_PREFIX, "text_model.", "text_projection.")
"""What the text encoders' keys begin with: in a single file, and in a diffusers folder."""
IGNORED_PREFIXES = (
    "model_ema.",
    "denoiser.",
    "alphas_cumprod",
    "betas",
    "sqrt_",
    "log_one_minus_",
    "posterior_",
    "v_pred",
    "ztsnr",
)
"""What checkpoints carry besides the three models: training leftovers and markers."""


class TensorSource(Protocol):
    """Named tensors of a file (or of memory), read one at a time."""

    def __iter__(self) -> Iterator[str]: ...
    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        ...

    def read(self, name: str, dtype: DTypeLike | None = None) -> np.ndarray:
        """One tensor in its own or another type."""
        ...


class OutlineFile(SafetensorsFile):
    """A file whose tensors are read as zeros that take no memory: right in everything but their values."""

    def read(self, name: str, dtype: DTypeLike | None = None) -> np.ndarray:
        """Zeros in the tensor's shape, read-only."""
        return np.broadcast_to(np.zeros((), dtype or np.float32), self.shape(name))


class TextEncodersFile(OutlineFile):
    """A file of which only the text encoders are read, in either layout; the rest is an outline."""

    def read(self, name: str, dtype: DTypeLike | None = None) -> np.ndarray:
        """A text encoder's tensor, or zeros in the tensor's shape."""
        if name.startswith(TEXT_KEYS):
            return SafetensorsFile.read(self, name, dtype)
        return super().read(name, dtype)


def load_weights(
    name_or_path: str,
    vae: str | None = None,
    te2_projection: str = "correct",
    dtype: DTypeLike = np.float32,
    file_type: type[SafetensorsFile] = SafetensorsFile,
) -> BaseWeights:
    """Read a base model.

    Args:
        name_or_path: a single .safetensors file, a diffusers folder, or a hub name.
        vae: a file or folder whose VAE replaces the model's own.
        te2_projection: ``correct`` puts the transpose of a single file's text_projection P into the linear layer, which
            then computes ``hidden @ P``; ``kohya`` puts P itself there, as the original does: ``hidden @ P.T``.
        dtype: type of the UNet's and text encoders' weights; the VAE is float32.
        file_type: ``OutlineFile`` checks all and reads only shapes, ``TextEncodersFile`` the text encoders too.

    Raises:
        ValueError: no such model, a file that is not whole, or keys that are missing, foreign or of another shape.
    """
    path = find_base_model(name_or_path)
    if path.is_dir():
        return _load_folder(path, vae, dtype, file_type)
    with file_type(path) as file:
        weights = weights_from_source(file, str(path), vae is not None, te2_projection, dtype)
    return weights if vae is None else BaseWeights(weights.parts, load_vae_weights(vae, file_type))


def weights_from_source(
    source: TensorSource,
    name: str,
    without_vae: bool = False,
    te2_projection: str = "correct",
    dtype: DTypeLike = np.float32,
) -> BaseWeights:
    """Read a single-file checkpoint, its VAE only if it is to be used; see ``load_weights``."""
    shapes = {key: source.shape(key) for key in source}
    _check_single_file(shapes, name, without_vae)
    parts: dict[str, dict[str, np.ndarray]] = {part: {} for part in PARTS}
    for key, destinations in single_file_destinations(shapes, te2_projection == "correct"):
        _put(parts, destinations, source.read(key, dtype))
    vae_keys = [key for key in shapes if key.startswith(VAE_PREFIX) and not without_vae]
    return BaseWeights(parts, {key.removeprefix(VAE_PREFIX): source.read(key, np.float32) for key in vae_keys})


def load_vae_weights(name_or_path: str, file_type: type[SafetensorsFile] = SafetensorsFile) -> dict[str, np.ndarray]:
    """The VAE of a VAE file, of a whole checkpoint, or of a diffusers folder, in float32."""
    path = find_base_model(name_or_path)
    if path.is_dir():
        inner = path / VAE_FOLDER
        return dict(_read_all(folder_files(inner if inner.is_dir() else path), np.float32, file_type))
    with file_type(path) as file:
        below = [key for key in file if key.startswith(VAE_PREFIX)]
        return {key.removeprefix(VAE_PREFIX): file.read(key, np.float32) for key in below or file}


def _put(parts: dict[str, dict[str, np.ndarray]], destinations: tuple[Destination, ...], array: np.ndarray) -> None:
    for destination in destinations:
        parts[destination.part][destination.key] = destination.place(array)


def _load_folder(folder: Path, vae: str | None, dtype: DTypeLike, file_type: type[SafetensorsFile]) -> BaseWeights:
    parts: dict[str, dict[str, np.ndarray]] = {}
    for part, sub in (("unet", "unet"), ("te1", "text_encoder"), ("te2", "text_encoder_2")):
        arrays = dict(_read_all(folder_files(folder / sub), dtype, file_type))
        parts[part] = {k: v for k, v in arrays.items() if not k.endswith(OPTIONAL_KEYS)}
    config = _config_of(
        conv_in=parts["unet"].get("conv_in.weight"), te1=parts["te1"], te2=parts["te2"], name=str(folder)
    )
    expected = _expected_parts(config)
    problems = []
    for part, wanted in expected.items():
        names = diffusers_names(part, wanted)
        problems += _compare(
            {names[key]: shape for key, shape in wanted.items()}, {k: v.shape for k, v in parts[part].items()}
        )
        parts[part] = {key: parts[part][names[key]] for key in wanted if names[key] in parts[part]}
    if problems:
        raise ValueError(f"{folder} is not an SDXL model in diffusers' layout: " + "; ".join(problems))
    return BaseWeights(parts, load_vae_weights(vae or str(folder), file_type))


def _read_all(
    files: list[Path], dtype: DTypeLike, file_type: type[SafetensorsFile]
) -> Iterator[tuple[str, np.ndarray]]:
    with ExitStack() as stack:
        for path in files:
            file = stack.enter_context(file_type(path))
            for key in file:
                yield key, file.read(key, dtype)


def _expected_parts(config: SdxlConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """Part -> program's key -> shape."""
    shapes = checkpoint_shapes(config)
    expected: dict[str, dict[str, tuple[int, ...]]] = {part: {} for part in PARTS}
    for key, destinations in single_file_destinations(shapes, True):
        for destination in destinations:
            shape = shapes[key]
            if len(destinations) > 1:
                shape = (shape[0] // len(destinations), *shape[1:])
            expected[destination.part][destination.key] = shape
    return expected


def _config_of(conv_in: object, te1: Mapping[str, object], te2: Mapping[str, object], name: str) -> SdxlConfig:
    token = "text_model.embeddings.token_embedding.weight"
    if conv_in is None or token not in te1 or token not in te2:
        raise ValueError(f"{name} is not an SDXL model in diffusers' layout: conv_in or a token_embedding is missing")
    return SdxlConfig(
        model_channels=conv_in.shape[0],  # type: ignore[attr-defined]
        text_1_width=te1[token].shape[1],  # type: ignore[attr-defined]
        text_2_width=te2[token].shape[1],  # type: ignore[attr-defined]
        vae_channels=128,
    )


def _check_single_file(shapes: Mapping[str, tuple[int, ...]], name: str, own_vae: bool) -> None:
    """One error that lists what a single file lacks, has too much, or has in another shape."""
    other = _other_kind(shapes)
    if other:
        raise ValueError(f"{name} is {other}; this script trains and samples SDXL, give an SDXL base model")
    first = UNET_PREFIX + "input_blocks.0.0.weight"
    token1, token2 = TEXT_1_PREFIX + "embeddings.token_embedding.weight", TEXT_2_PREFIX + "token_embedding.weight"
    vae_first = VAE_PREFIX + "encoder.conv_in.weight"
    anchors = [
        key for key in (first, token1, token2, vae_first) if key not in shapes and not (own_vae and key == vae_first)
    ]
    if anchors:
        raise ValueError(f"{name} is not a single-file SDXL checkpoint: it has no {', no '.join(anchors)}")
    config = SdxlConfig(
        model_channels=shapes[first][0],
        text_1_width=shapes[token1][1],
        text_2_width=shapes[token2][1],
        vae_channels=shapes[vae_first][0] if vae_first in shapes else 128,
    )
    expected = checkpoint_shapes(config)
    if own_vae:
        expected = {key: shape for key, shape in expected.items() if not key.startswith(VAE_PREFIX)}
        shapes = {key: shape for key, shape in shapes.items() if not key.startswith(VAE_PREFIX)}
    problems = _compare(expected, shapes)
    if problems:
        raise ValueError(f"{name} is not a whole SDXL checkpoint: " + "; ".join(problems))


def _other_kind(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """What a file is, if it is recognisably not an SDXL base model."""
    if any(key.startswith("lora_") for key in shapes):
        return "a LoRA"
    if any(key.startswith("cond_stage_model.transformer.") for key in shapes):
        return "a Stable Diffusion 1.x checkpoint"
    if any(key.startswith("cond_stage_model.model.") for key in shapes):
        return "a Stable Diffusion 2.x checkpoint"
    if any(key.startswith(("double_blocks.", "model.diffusion_model.double_blocks.")) for key in shapes):
        return "a Flux checkpoint"
    if any("embedders.0.model.transformer" in key for key in shapes) and not any(
        TEXT_1_PREFIX in key for key in shapes
    ):
        return "an SDXL refiner checkpoint"
    return None


def _compare(expected: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    missing = [key for key in expected if key not in shapes and not key.endswith(OPTIONAL_KEYS)]
    extra = [
        key
        for key in shapes
        if key not in expected and not key.endswith(OPTIONAL_KEYS) and not key.startswith(IGNORED_PREFIXES)
    ]
    misshapen = [
        f"{key} is {tuple(shapes[key])}, expected {shape}"
        for key, shape in expected.items()
        if key in shapes and tuple(shapes[key]) != tuple(shape)
    ]
    kinds = (("missing", missing), ("not of SDXL", extra), ("of another shape", misshapen))
    return [f"{len(keys)} keys {what}: {_listed(keys)}" for what, keys in kinds if keys]


def _listed(keys: list[str]) -> str:
    more = f", ... and {len(keys) - MAX_LISTED} more" if len(keys) > MAX_LISTED else ""
    return ", ".join(keys[:MAX_LISTED]) + more
