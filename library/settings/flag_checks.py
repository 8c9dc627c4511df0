"""Checks between flags: what cannot stand together, what needs another flag, what has no effect alone."""

from collections.abc import Callable, Mapping
from typing import Any

from library.settings.dataset_keys import CACHE_INFO
from library.settings.key_values import parse_key_values
from library.settings.problems import UsageError

Values = Mapping[str, Any]
"""Every flag's typed value by name, defaults filled in."""

REQUIRED = (
    ("pretrained_model_name_or_path",),
    ("dataset_config", "train_data_dir", "in_json"),
    ("network_module",),
    ("output_dir",),
)
"""Of each of these flags one must be given."""
FOLDER_FLAGS = ("train_data_dir", "reg_data_dir", "in_json")
"""Flags that name the pictures instead of a dataset file."""


def _timesteps_empty(values: Values) -> bool:
    low, high = values["min_timestep"], values["max_timestep"]
    return bool((0 if low is None else low) >= (1000 if high is None else high))


def _without_file(values: Values, *names: str) -> bool:
    """Whether these flags are given and count, as there is no dataset file."""
    return not values["dataset_config"] and all(values[name] for name in names)


CONFLICTS: tuple[tuple[Callable[[Values], bool], str], ...] = (
    (
        lambda v: v["adaptive_noise_scale"] is not None and v["noise_offset"] is None,
        "--adaptive_noise_scale needs --noise_offset, which it changes; give both or neither",
    ),
    (
        lambda v: v["scale_v_pred_loss_like_noise_pred"] and not v["v_parameterization"],
        "--scale_v_pred_loss_like_noise_pred is for models trained with --v_parameterization; give both or neither",
    ),
    (
        lambda v: v["v_pred_like_loss"] and v["v_parameterization"],
        "--v_pred_like_loss is for models that predict noise; leave out it or --v_parameterization",
    ),
    (
        lambda v: v["network_train_unet_only"] and v["network_train_text_encoder_only"],
        "--network_train_unet_only and --network_train_text_encoder_only together train nothing; leave one out",
    ),
    (
        lambda v: v["gradient_checkpointing_keep"] and not v["gradient_checkpointing"],
        "--gradient_checkpointing_keep needs --gradient_checkpointing; without it everything is kept",
    ),
    (
        lambda v: not v["caption_separator"],
        "--caption_separator must not be empty; leave it out for a comma",
    ),
    (
        lambda v: _without_file(v, "reg_data_dir") and not (v["train_data_dir"] or v["in_json"]),
        "--reg_data_dir needs --train_data_dir, whose pictures its own accompany",
    ),
    (
        lambda v: _without_file(v, "reg_data_dir", "in_json"),
        "--reg_data_dir cannot go with --in_json, which knows no regularisation pictures; leave one out",
    ),
    (
        lambda v: (_without_file(v, "train_data_dir") or _without_file(v, "in_json")) and not v["resolution"],
        "--resolution is missing; without a dataset file only it says the training size",
    ),
    (
        lambda v: (
            (v["cache_text_encoder_outputs"] or v["cache_text_encoder_outputs_to_disk"])
            and not v["network_train_unet_only"]
        ),
        "--cache_text_encoder_outputs needs --network_train_unet_only: what text encoders give changes while they are "
        "trained; give both or neither",
    ),
    (_timesteps_empty, "--min_timestep must be below --max_timestep (unset: 0 and 1000), or no timestep is left"),
)
"""(condition, message): the command is refused when the condition holds."""

NOTES: tuple[tuple[Callable[[Values], bool], str], ...] = (
    (
        lambda v: v["zero_terminal_snr"] and not v["v_parameterization"],
        "--zero_terminal_snr is meant for --v_parameterization; a noise prediction cannot learn its last step",
    ),
    (
        lambda v: len(set(v["text_encoder_lr"])) > 1,
        "--text_encoder_lr: the first value is used for both text encoders, as in the original",
    ),
    (
        lambda v: v["cache_latents_to_disk"] and not v["cache_latents"],
        "--cache_latents_to_disk implies --cache_latents",
    ),
    (
        lambda v: v["cache_text_encoder_outputs_to_disk"] and not v["cache_text_encoder_outputs"],
        "--cache_text_encoder_outputs_to_disk implies --cache_text_encoder_outputs",
    ),
    (
        lambda v: v["skip_cache_check"] and not (v["cache_latents_to_disk"] or v["cache_text_encoder_outputs_to_disk"]),
        "--skip_cache_check has no effect without a cache on disk",
    ),
    (
        lambda v: v["text_encoder_lr"] and v["network_train_unet_only"],
        "--text_encoder_lr has no effect with --network_train_unet_only",
    ),
    (
        lambda v: v["unet_lr"] is not None and v["network_train_text_encoder_only"],
        "--unet_lr has no effect with --network_train_text_encoder_only",
    ),
    (
        lambda v: v["noise_offset_random_strength"] and not v["noise_offset"],
        "--noise_offset_random_strength has no effect without --noise_offset",
    ),
    (
        lambda v: v["ip_noise_gamma_random_strength"] and not v["ip_noise_gamma"],
        "--ip_noise_gamma_random_strength has no effect without --ip_noise_gamma",
    ),
    (
        lambda v: v["save_last_n_epochs"] and not (v["save_every_n_epochs"] or v["save_n_epoch_ratio"]),
        "--save_last_n_epochs has no effect without --save_every_n_epochs or --save_n_epoch_ratio",
    ),
    (
        lambda v: v["save_last_n_steps"] and not v["save_every_n_steps"],
        "--save_last_n_steps has no effect without --save_every_n_steps",
    ),
    (
        lambda v: v["save_n_epoch_ratio"] and v["save_every_n_epochs"],
        "--save_n_epoch_ratio replaces --save_every_n_epochs",
    ),
    (lambda v: v["cache_info"], f"--cache_info: {CACHE_INFO}"),
    (
        lambda v: v["dataset_config"] and any(v[name] for name in FOLDER_FLAGS),
        "--train_data_dir, --reg_data_dir and --in_json have no effect with --dataset_config, as in the original",
    ),
    (
        lambda v: _without_file(v, "train_data_dir") and not v["in_json"] and v["dataset_repeats"] != 1,
        "--dataset_repeats has no effect with --train_data_dir, whose folders' names begin with their repeats",
    ),
    (
        lambda v: v["validation_seed"] is not None and not v["validation_split"] and not v["dataset_config"],
        "--validation_seed has no effect without --validation_split",
    ),
)
"""(condition, line): told in the log, the run goes on."""

KEY_VALUE_FLAGS: tuple[tuple[str, bool], ...] = (
    ("optimizer_args", True),
    ("lr_scheduler_args", True),
    ("network_args", False),
)
"""(flag, whether its values are Python literals)."""


def conflicts(values: Values) -> list[str]:
    """List what makes the flags impossible together, key=value lists that cannot be read among them."""
    found = [message for holds, message in CONFLICTS if holds(values)]
    for name, literal in KEY_VALUE_FLAGS:
        try:
            parse_key_values(values[name], literal, f"--{name}")
        except UsageError as error:
            found.append(str(error))
    return found


def notes(values: Values) -> list[str]:
    """List what a user should know about flags that have no or another effect together."""
    return [line for holds, line in NOTES if holds(values)]


def missing(values: Values) -> list[str]:
    """List the required flags that were not given."""
    return [
        " or ".join(f"--{name}" for name in names) + " is required"
        for names in REQUIRED
        if not any(values[name] for name in names)
    ]
