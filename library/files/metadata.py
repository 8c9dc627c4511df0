"""The ``ss_*`` texts that kohya writes into a network file: how it was trained."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType

from library.files.hash_memory import remembered_sha256
from library.files.hashes import model_hash

UNKNOWN_VERSION = "(unknown)"
MINIMUM_KEYS = (
    "ss_v2",
    "ss_base_model_version",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
)

# kohya's keys in kohya's order. A key's value is the option or fact of the same name without "ss_", except where
# _SOURCES says otherwise; where there is no such option here, kohya's default for it from _DEFAULTS.
_KEYS = (
    *("ss_output_name", "ss_learning_rate", "ss_text_encoder_lr", "ss_unet_lr", "ss_num_train_images"),
    *("ss_num_validation_images", "ss_num_reg_images", "ss_num_batches_per_epoch", "ss_num_epochs"),
    *("ss_gradient_checkpointing", "ss_gradient_accumulation_steps", "ss_max_train_steps", "ss_lr_warmup_steps"),
    *("ss_lr_scheduler", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_dropout"),
    *("ss_mixed_precision", "ss_full_fp16", "ss_v2", "ss_base_model_version", "ss_clip_skip", "ss_max_token_length"),
    *("ss_cache_latents", "ss_seed", "ss_lowram", "ss_noise_offset", "ss_multires_noise_iterations"),
    *("ss_multires_noise_discount", "ss_adaptive_noise_scale", "ss_zero_terminal_snr", "ss_training_comment"),
    *("ss_sd_scripts_commit_hash", "ss_optimizer", "ss_max_grad_norm", "ss_caption_dropout_rate"),
    *("ss_caption_dropout_every_n_epochs", "ss_caption_tag_dropout_rate", "ss_face_crop_aug_range"),
    *("ss_prior_loss_weight", "ss_min_snr_gamma", "ss_scale_weight_norms", "ss_ip_noise_gamma"),
    *("ss_debiased_estimation", "ss_noise_offset_random_strength", "ss_ip_noise_gamma_random_strength"),
    *("ss_loss_type", "ss_huber_schedule", "ss_huber_scale", "ss_huber_c", "ss_fp8_base", "ss_fp8_base_unet"),
    *("ss_validation_seed", "ss_validation_split", "ss_max_validation_steps", "ss_validate_every_n_epochs"),
    *("ss_validate_every_n_steps", "ss_resize_interpolation"),
)
_SOURCES = MappingProxyType({"ss_debiased_estimation": "debiased_estimation_loss"})
_DEFAULTS = MappingProxyType(
    {
        **dict.fromkeys(("full_fp16", "v2", "cache_latents", "lowram", "debiased_estimation_loss"), False),
        **dict.fromkeys(("fp8_base", "fp8_base_unet"), False),
        **dict.fromkeys(("clip_skip", "max_token_length", "face_crop_aug_range", "scale_weight_norms"), None),
        **dict.fromkeys(("validation_seed", "max_validation_steps", "validate_every_n_epochs"), None),
        **dict.fromkeys(("validate_every_n_steps", "resize_interpolation"), None),
        "huber_schedule": "snr",
        "huber_scale": 1.0,
        "huber_c": 0.1,
        "validation_split": 0.0,
    }
)


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a run knows of itself besides its options."""

    num_train_images: int
    """Pictures with their repeats, regularisation pictures not counted."""
    num_reg_images: int
    num_batches_per_epoch: int
    num_epochs: int
    base_model_version: str
    """kohya's name for the kind of base model: ``sdxl_base_v1-0``."""
    optimizer: str
    """Optimizer and its settings: ``AdamW(weight_decay=0.05,betas=(0.9, 0.98))``."""
    num_validation_images: int = 0
    version: str = UNKNOWN_VERSION
    """This project's version, written where kohya writes its commit."""


def build_metadata(
    options: Mapping[str, object],
    facts: RunFacts,
    dataset: Mapping[str, object],
    base_files: Mapping[str, str],
    started: datetime | None,
) -> dict[str, str]:
    """All texts that stay the same during a run, in kohya's order.

    `options`: the training options by their flag's name. `dataset`: ``ss_`` keys that describe the pictures; lists and
    dicts are written as JSON. `base_files`: of `base_file_metadata`. `started`: of `file_date`; None leaves the time
    out. The session id is derived from everything else, so that equal runs have equal files.
    Raises ValueError naming the options that are missing.
    """
    values = {**_DEFAULTS, **options, **_fact_values(facts), "text_encoder_lr": _first_rate(options)}
    sources = {key: _SOURCES.get(key, key.removeprefix("ss_")) for key in _KEYS}
    missing = sorted(source for source in sources.values() if source not in values)
    if missing:
        raise ValueError(f"options needed for the metadata of the file and not given: {', '.join(missing)}")
    rest = {key: str(values[source]) for key, source in sources.items()}
    rest |= {key: _text(value) for key, value in dataset.items()}
    network_args = options.get("network_args")
    if network_args:
        rest["ss_network_args"] = _network_args_json(network_args, options["network_dropout"])
    rest |= base_files
    head = {"ss_session_id": _session_id(rest)}
    if started is not None:
        head["ss_training_started_at"] = str(started.timestamp())
    return head | rest


def base_file_metadata(model: str, vae: str | None = None) -> dict[str, str]:
    """Names and hashes of the base model and of a VAE given beside it. Reads a file whole the first time.

    A local path is written as its last part only; a hub name as it is, without hashes.
    """
    found: dict[str, str] = {}
    for kind, location in (("sd_model", model), ("vae", vae)):
        if location is None:
            continue
        path = Path(location)
        if path.exists():
            found[f"ss_{kind}_hash"] = model_hash(path)
            found[f"ss_new_{kind}_hash"] = remembered_sha256(path)
        found[f"ss_{kind}_name"] = path.name if path.exists() else location
    return found


def stamped(metadata: Mapping[str, str], steps: int, epoch: int, finished: datetime | None) -> dict[str, str]:
    """The metadata of one saved file: steps done, epoch (1 is the first), and the time unless it is None."""
    stamps = {"ss_steps": str(steps), "ss_epoch": str(epoch)}
    if finished is not None:
        stamps = {"ss_training_finished_at": str(finished.timestamp())} | stamps
    return dict(metadata) | stamps


def minimum_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """What is written with --no_metadata: only what a program needs to load the network."""
    return {key: metadata[key] for key in MINIMUM_KEYS if key in metadata}


def _fact_values(facts: RunFacts) -> dict[str, object]:
    return {**vars(facts), "sd_scripts_commit_hash": facts.version}


def _first_rate(options: Mapping[str, object]) -> object:
    """kohya's networks.lora uses the first of several text encoder rates, and writes that one."""
    rates = options.get("text_encoder_lr")
    if isinstance(rates, (list, tuple)):
        return rates[0] if rates else None
    return rates


def _network_args_json(network_args: object, dropout: object) -> str:
    assert isinstance(network_args, (list, tuple)), "network_args is a list of key=value texts"
    pairs = (str(item).partition("=") for item in network_args)
    settings: dict[str, object] = {key.strip(): value.strip() for key, _, value in pairs}
    return json.dumps({**settings, "dropout": settings.get("dropout", dropout)})


def _text(value: object) -> str:
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)


def _session_id(metadata: Mapping[str, str]) -> str:
    """A number below 2**32 that stands for everything in the metadata."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).digest()
    return str(int.from_bytes(digest[:4], "big"))
