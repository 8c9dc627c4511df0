"""Finding a base model: a file, a diffusers folder, or a hub name. No MindSpore."""

import json
import logging
import re
from pathlib import Path

logger = logging.getLogger(__name__)

VAE_FOLDER = "vae"
SUFFIX = ".safetensors"
WEIGHT_NAMES = ("diffusion_pytorch_model", "model")
VARIANTS = ("", ".fp16", ".bf16")
"""The plain file is preferred; a folder may hold a half-precision variant only."""
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_PATTERNS = ("*.json", "unet/*.safetensors", "text_encoder*/*.safetensors", "vae/*.safetensors")


def find_base_model(name_or_path: str) -> Path:
    """The file or folder meant; a hub name is fetched (or found in its cache) first.

    Raises:
        ValueError: there is no such file or folder and the text is no hub name, the hub has no such model or cannot be
            reached, or the file is of a kind that is never opened.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix in (".ckpt", ".pt", ".pth", ".bin"):
            raise ValueError(
                f"{path}: {path.suffix} files hold a pickle, which can run code, and are never opened. Convert it to "
                "safetensors where you trust it (for example with the safetensors package's convert script)"
            )
        return path
    if path.suffix or path.is_absolute() or not _HUB_NAME.fullmatch(name_or_path):
        raise ValueError(
            f"no such base model: {name_or_path}. Give a .safetensors file, a diffusers folder, or a hub name like "
            "stabilityai/stable-diffusion-xl-base-1.0"
        )
    return _fetch(name_or_path)


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from requests.exceptions import RequestException

    try:
        return Path(snapshot_download(name, allow_patterns=list(_HUB_PATTERNS)))
    except (HfHubHTTPError, LocalEntryNotFoundError, RequestException, OSError) as error:
        raise ValueError(
            f"no folder {name} here, and the hub did not give it: {error}. Check the name; HF_ENDPOINT, HF_HUB_OFFLINE "
            "and HF_TOKEN are obeyed"
        ) from error


def folder_files(folder: Path) -> list[Path]:
    """The weight files of one model in a diffusers folder, all shards.

    Raises:
        ValueError: the folder is missing or holds no safetensors weights.
    """
    for name in WEIGHT_NAMES:
        for variant in VARIANTS:
            single = folder / f"{name}{variant}{SUFFIX}"
            if single.is_file():
                return [single]
            index = folder / f"{name}{SUFFIX}.index{variant}.json"
            if index.is_file():
                table = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
                return [folder / shard for shard in sorted(set(table.values()))]
    raise ValueError(
        f"no weights in {folder}: looked for {' and '.join(n + SUFFIX for n in WEIGHT_NAMES)}, their fp16 variants and "
        "shards. A diffusers folder has unet, text_encoder (and text_encoder_2) and vae with safetensors files"
    )
