"""The flags of the original that are mapped or refused here, each with its one line.

The original's sdxl_train_network.py has 196 flags; those not listed here are fields of the flag groups.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from library.settings.flags import Raw

Takes = Literal["", "VALUE", "VALUES"]
SWITCH: Takes = ""
ONE: Takes = "VALUE"
MANY: Takes = "VALUES"

NO_STATE = "training states are neither saved nor resumed; use --network_weights to go on from a saved network"
NO_SAMPLES = "draw with sdxl_minimal_inference.py from the files saved on the way (--save_every_n_steps)"
NO_TRACKER = "the progress bar and the console log show the loss; leave it out"
NO_UPLOAD = "nothing is sent anywhere; upload the saved file with huggingface-cli upload"
NO_VALIDATION = "pictures held back by --validation_split are left out of training, no loss is computed on them"
NO_DEEPSPEED = "DeepSpeed needs torch; use --gradient_checkpointing to save memory"
NO_DDP = "it sets up torch's data-parallel training; leave it out"
ATTENTION = "attention is chosen by the device: flash attention on Ascend with --flash_attn, else the plain one"

MAPPED: Mapping[str, tuple[Takes, str]] = MappingProxyType({
    "xformers": (SWITCH, ATTENTION),
    "sdpa": (SWITCH, ATTENTION),
    "mem_eff_attn": (SWITCH, ATTENTION),
    "torch_compile": (SWITCH, "the model's blocks are compiled by MindSpore, see --jit"),
    "lowram": (SWITCH, "weights are always read straight from the file into place; nothing to change"),
    "highvram": (SWITCH, "models always stay on the device; nothing to change"),
    "disable_mmap_load_safetensors": (SWITCH, "each tensor is read once and its pages are released"),
    "persistent_data_loader_workers": (SWITCH, "pictures are loaded by threads, which take no time to start"),
    "tokenizer_cache_dir": (ONE, "the vocabulary ships with an installed package; nothing is fetched or stored"),
})  # fmt: skip
"""flag -> (what it takes, what is done instead); the line is handed to the caller for the log."""

ALIASES: Mapping[str, str] = MappingProxyType({"caption_extention": "caption_extension"})
"""The original's other spellings; the alias wins over the flag, as there."""

NOT_BUILT: Mapping[str, tuple[Takes, str]] = MappingProxyType({
    # data
    "dataset_class": (ONE, "only dataset files are read; use --dataset_config"),
    # network and optimizer
    "dim_from_weights": (SWITCH, "give the --network_dim and --network_alpha that the file was trained with"),
    "scale_weight_norms": (ONE, "leave it out; --max_grad_norm limits the steps instead"),
    "base_weights": (MANY, "merge the LoRA into the base model beforehand"),
    "base_weights_multiplier": (MANY, "merge the LoRA into the base model beforehand"),
    "full_fp16": (SWITCH, "adapters are trained in float32; --mixed_precision fp16 halves the frozen model"),
    "full_bf16": (SWITCH, "adapters are trained in float32; --mixed_precision bf16 halves the frozen model"),
    # loss
    "huber_schedule": (ONE, "only --loss_type l2 is there, which does not use it"),
    "huber_c": (ONE, "only --loss_type l2 is there, which does not use it"),
    "huber_scale": (ONE, "only --loss_type l2 is there, which does not use it"),
    "debiased_estimation_loss": (SWITCH, "--min_snr_gamma 5 weighs the loss to a like end"),
    # states, samples, logs, validation, files
    "save_state": (SWITCH, NO_STATE),
    "save_state_on_train_end": (SWITCH, NO_STATE),
    "save_last_n_epochs_state": (ONE, NO_STATE),
    "save_last_n_steps_state": (ONE, NO_STATE),
    "resume": (ONE, NO_STATE),
    "initial_epoch": (ONE, NO_STATE),
    "initial_step": (ONE, NO_STATE),
    "skip_until_initial_step": (SWITCH, NO_STATE),
    "sample_every_n_steps": (ONE, NO_SAMPLES),
    "sample_every_n_epochs": (ONE, NO_SAMPLES),
    "sample_at_first": (SWITCH, NO_SAMPLES),
    "sample_prompts": (ONE, NO_SAMPLES),
    "sample_sampler": (ONE, NO_SAMPLES),
    "logging_dir": (ONE, NO_TRACKER),
    "log_with": (ONE, NO_TRACKER),
    "log_prefix": (ONE, NO_TRACKER),
    "log_tracker_name": (ONE, NO_TRACKER),
    "log_tracker_config": (ONE, NO_TRACKER),
    "wandb_run_name": (ONE, NO_TRACKER),
    "wandb_api_key": (ONE, NO_TRACKER),
    "log_config": (SWITCH, NO_TRACKER),
    "validate_every_n_steps": (ONE, NO_VALIDATION),
    "validate_every_n_epochs": (ONE, NO_VALIDATION),
    "max_validation_steps": (ONE, NO_VALIDATION),
    "output_config": (SWITCH, "write the file for --config_file by hand: one line flag = value for each flag"),
    "huggingface_repo_id": (ONE, NO_UPLOAD),
    "huggingface_repo_type": (ONE, NO_UPLOAD),
    "huggingface_path_in_repo": (ONE, NO_UPLOAD),
    "huggingface_token": (ONE, NO_UPLOAD),
    "huggingface_repo_visibility": (ONE, NO_UPLOAD),
    "save_state_to_huggingface": (SWITCH, NO_UPLOAD),
    "resume_from_huggingface": (SWITCH, NO_STATE),
    "async_upload": (SWITCH, NO_UPLOAD),
})  # fmt: skip
"""flag -> (what it takes, what to do instead) for features that are planned."""

NO_MEANING: Mapping[str, tuple[Takes, str]] = MappingProxyType({
    "v2": (SWITCH, "it selects Stable Diffusion 2.x and this script trains SDXL; leave it out"),
    "clip_skip": (ONE, "it has no effect on SDXL, in the original neither; leave it out"),
    "conditioning_data_dir": (ONE, "the original never reads this flag, only the key; leave it out"),
    "use_8bit_adam": (SWITCH, "8-bit Adam comes from bitsandbytes, which needs CUDA; use --optimizer_type AdamW"),
    "use_lion_optimizer": (SWITCH, "it is an old spelling; write --optimizer_type Lion"),
    "fused_backward_pass": (SWITCH, "it has no effect on network training, in the original neither; leave it out"),
    "lr_scheduler_type": (ONE, "it names a class of torch; use --lr_scheduler"),
    "fp8_base": (SWITCH, "torch's float8 weights have no counterpart in MindSpore; use --mixed_precision bf16"),
    "fp8_base_unet": (SWITCH, "torch's float8 weights have no counterpart in MindSpore; use --mixed_precision bf16"),
    "cpu_offload_checkpointing": (SWITCH, "it fails on SDXL in the original too; use --gradient_checkpointing"),
    "dynamo_backend": (ONE, "it names a compiler of torch; see --jit"),
    "ddp_timeout": (ONE, NO_DDP),
    "ddp_gradient_as_bucket_view": (SWITCH, NO_DDP),
    "ddp_static_graph": (SWITCH, NO_DDP),
    "deepspeed": (SWITCH, NO_DEEPSPEED),
    "zero_stage": (ONE, NO_DEEPSPEED),
    "offload_optimizer_device": (ONE, NO_DEEPSPEED),
    "offload_optimizer_nvme_path": (ONE, NO_DEEPSPEED),
    "offload_param_device": (ONE, NO_DEEPSPEED),
    "offload_param_nvme_path": (ONE, NO_DEEPSPEED),
    "zero3_init_flag": (SWITCH, NO_DEEPSPEED),
    "zero3_save_16bit_model": (SWITCH, NO_DEEPSPEED),
    "fp16_master_weights_and_gradients": (SWITCH, NO_DEEPSPEED),
})  # fmt: skip
"""flag -> (what it takes, why it means nothing here and what to do)."""

REFUSED_VALUES: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("save_model_as", "pt"): "has no meaning here: it is a torch pickle, which is never written; use safetensors",
        ("loss_type", "l1"): "not built yet; use l2",
        ("loss_type", "huber"): "not built yet; use l2",
        ("loss_type", "smooth_l1"): "not built yet; use l2",
    }
)
"""(flag, value) -> reason, for values of the original that a flag does not take here."""


def refusal(name: str) -> str | None:
    """Why the flag `name` is refused, or None when it is not."""
    if name in NOT_BUILT:
        return f"not built yet; {NOT_BUILT[name][1]}"
    return f"has no meaning here: {NO_MEANING[name][1]}" if name in NO_MEANING else None


def means_off(raw: Raw) -> bool:
    """Say whether a value switches nothing on: false, nothing at all, none, no, or a zero."""
    if isinstance(raw, bool):
        return not raw
    if isinstance(raw, list):
        return all(map(means_off, raw))
    if raw.strip().lower() in ("", "none", "no", "false"):
        return True
    try:
        return float(raw) == 0
    except ValueError:
        return False
