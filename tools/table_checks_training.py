"""Checks of the recorded tables about files, noise and learning rates: table name -> function(cases) -> mismatches.

Whatever cases a table holds are run through the project's own functions. Discrete values must be equal; numbers within
the tolerances below.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from library.files.file_names import get_remove_epoch_no, get_remove_step_no
from library.files.hashes import sshs_hashes
from library.files.safetensors_header import encode_header, file_order
from library.files.safetensors_utils import specs_of
from library.training.loss_weights import (
    debiased_weights,
    huber_thresholds,
    min_snr_weights,
    v_pred_like_factors,
    v_pred_scale,
)
from library.training.lr_schedules import LrOptions, make_lr_lambda
from library.training.noise_schedule import make_noise_schedule
from networks.block_weights import block_lr_weights

# The tables are float64, our schedule is float32 like the reference's: at timestep 0 the rounding of
# 1 - alphas_cumprod makes 2.6e-5 of the SNR, at 998 the rounding of the rebuilt betas 3.8e-5 of the zero-terminal one.
SCHEDULE_TOLERANCE = 5e-5
LR_TOLERANCE = 1e-12  # of the full rate; the same formulas in float64, but cosines may differ in the last bit
# What the step and epoch tables were recorded with; they do not say so themselves.
STEP_TABLE = MappingProxyType({"save_every_n_steps": 10, "save_last_n_steps": 30})
EPOCH_TABLE = MappingProxyType({"save_every_n_epochs": 2, "save_last_n_epochs": 3})
HUBER_C = 0.1  # of the loss tables
SDXL_STAGES = MappingProxyType({"down": 9, "mid": 3, "up": 9})
"""Stage of SDXL's UNet -> number of its blocks."""
# Number formats that a network of the hash table may have: weights, alpha.
_HASH_TYPES = tuple((np.dtype(weight), np.dtype(alpha)) for weight in ("f4", "f2") for alpha in ("f4", "i8", "f2"))


def check_remove_step_no(cases: Iterable[Any]) -> list[str]:
    """Pairs of a step and the step whose file is removed."""
    return [
        f"step {step}: {found}, expected {expected}"
        for step, expected in cases
        if (found := get_remove_step_no(step, **STEP_TABLE)) != expected
    ]


def check_remove_epoch_no(cases: Iterable[Any]) -> list[str]:
    """Pairs of an epoch and the epoch whose file is removed."""
    return [
        f"epoch {epoch}: {found}, expected {expected}"
        for epoch, expected in cases
        if (found := get_remove_epoch_no(epoch, **EPOCH_TABLE)) != expected
    ]


def check_sshs_hashes(cases: Iterable[Any]) -> list[str]:
    """Networks made by rule, saved and hashed."""
    mismatches = []
    for case in cases:
        tensors = _hashed_tensors(case)
        specs = specs_of(tensors)
        header = len(encode_header(specs, case["ss_metadata"])) - 8
        found = {
            "order_in_file": file_order(specs),
            "header_len": header,
            "size": 8 + header + sum(spec.size for spec in specs.values()),
            **sshs_hashes(tensors, case["ss_metadata"]),
        }
        mismatches += [
            f"{case['case']} {key}: {value}, expected {case[key]}"
            for key, value in found.items()
            if key in case and case[key] != value
        ]
    return mismatches


def _hashed_tensors(case: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The recorded case's tensors: dims are rank, inputs, outputs; alpha is 1; the size tells the number formats."""
    rank, inputs, outputs = case["dims"]
    shapes = {"lora_down.weight": (rank, inputs), "lora_up.weight": (outputs, rank)}
    items = sum(math.prod(shape) for shape in shapes.values())
    size_per_module = (case["size"] - 8 - case["header_len"]) / len(case["modules"])
    weight_type, alpha_type = next(
        (pair for pair in _HASH_TYPES if pair[0].itemsize * items + pair[1].itemsize == size_per_module), _HASH_TYPES[0]
    )
    tensors = {}
    for module in case["modules"]:
        tensors[f"{module}.alpha"] = np.ones((), alpha_type)
        for name, shape in shapes.items():
            values = (np.arange(math.prod(shape)) % 97 / 97).astype(np.float32)
            tensors[f"{module}.{name}"] = values.reshape(shape).astype(weight_type)
    return tensors


def check_lr_lambda(table: Mapping[str, Any]) -> list[str]:
    """Curves named by their scheduler and options, from step 0."""
    mismatches = []
    for name, expected in table["curves"].items():
        curve = make_lr_lambda(_lr_options(name, table["T"]))
        mismatches += _compare(name, [curve(step) for step in range(len(expected))], expected, LR_TOLERANCE, floor=1)
    return mismatches


_LR_KEYS = MappingProxyType(
    {
        "W": ("warmup_steps", int),
        "D": ("decay_steps", int),
        "cycles": ("num_cycles", int),
        "power": ("power", float),
        "ratio": ("min_lr_ratio", float),
        "timescale": ("timescale", int),
        "lr0": ("learning_rate", float),
    }
)


def _lr_options(curve_name: str, total_steps: int) -> LrOptions:
    """Options out of ``cosine_with_min_lr W=4 cycles=2 ratio=0.1``; keys unknown here are --lr_scheduler_args."""
    scheduler, *settings = curve_name.split()
    options: dict[str, Any] = {"learning_rate": 1e-4}
    scheduler_args: dict[str, Any] = {}
    for setting in settings:
        key, _, text = setting.partition("=")
        if key not in _LR_KEYS:
            scheduler_args[key] = text
        elif text != "None":
            name, convert = _LR_KEYS[key]
            options[name] = convert(text)
    return LrOptions(scheduler=scheduler, total_steps=total_steps, scheduler_args=scheduler_args, **options)


def check_loss_weights(table: Mapping[str, Any]) -> list[str]:
    """SNR and factors of the loss, at the table's timesteps."""
    timesteps = np.array(table["timesteps"])
    mismatches = []
    for name, expected in table.items():
        if name not in ("timesteps", "note"):
            found = _loss_weights(name, timesteps)
            mismatches += (
                [f"{name}: not built"] if found is None else _compare(name, found, expected, SCHEDULE_TOLERANCE)
            )
    return mismatches


def _loss_weights(name: str, timesteps: np.ndarray) -> np.ndarray | None:
    """The row of a table called ``min_snr_gamma=5 eps``, ``debiased v``, ``huber_c snr``, ..."""
    schedule = make_noise_schedule()
    snr = schedule.snr[timesteps]
    kind, _, rest = name.partition(" ")
    kind, _, number = kind.partition("=")
    if kind == "snr":
        return snr
    if kind == "min_snr_gamma":
        return min_snr_weights(snr, float(number), rest == "v")
    if kind == "scale_v_pred":
        return v_pred_scale(snr)
    if kind == "v_pred_like_loss":
        return v_pred_like_factors(snr, float(number))
    if kind == "debiased":
        return debiased_weights(snr, rest == "v")
    if kind == "huber_c":
        return huber_thresholds(schedule, timesteps, rest, HUBER_C)
    return None


def check_noise_schedule(table: Mapping[str, Any]) -> list[str]:
    """Per timestep: the schedule, its SNR, and the weights made of it."""
    schedule, terminal = make_noise_schedule(), make_noise_schedule(zero_terminal_snr=True)
    timesteps = np.array([int(timestep) for timestep in table])
    snr = schedule.snr[timesteps]
    rows = {
        "beta": schedule.betas[timesteps],
        "alphas_cumprod": schedule.alphas_cumprod[timesteps],
        "snr": snr,
        "min_snr5_eps": min_snr_weights(snr, 5, False),
        "min_snr5_v": min_snr_weights(snr, 5, True),
        "debiased_eps": debiased_weights(snr, False),
        "debiased_v": debiased_weights(snr, True),
        "snr_scale": v_pred_scale(snr),
        "huber_snr_c0.1": huber_thresholds(schedule, timesteps, "snr", HUBER_C),
        "huber_exp_c0.1": huber_thresholds(schedule, timesteps, "exponential", HUBER_C),
        "ztsnr_alphas_cumprod": terminal.alphas_cumprod[timesteps],
    }
    mismatches = []
    for (timestep, expected), index in zip(table.items(), range(len(timesteps)), strict=True):
        for name, value in expected.items():
            if name not in rows:
                mismatches.append(f"{name}: not built")
            else:
                mismatches += _compare(f"timestep {timestep} {name}", [rows[name][index]], [value], SCHEDULE_TOLERANCE)
    return mismatches


def _compare(name: str, found: Any, expected: Any, tolerance: float, floor: float = 1e-30) -> list[str]:
    """One line for the worst of some numbers when its error, relative to it or at least to `floor`, is too large."""
    actual, wanted = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    error = np.abs(actual - wanted) / np.maximum(np.abs(wanted), floor)
    worst = int(np.argmax(error))
    if error[worst] <= tolerance:
        return []
    return [f"{name}: {actual[worst]:.9g}, expected {wanted[worst]:.9g} (relative error {error[worst]:.2g})"]


def check_block_lr_weights(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Factors of the UNet's blocks; kohya's list has a 1 before and behind them, for the embeddings and the output."""
    mismatches = []
    for case in cases:
        weights = block_lr_weights(case["kwargs"], SDXL_STAGES)
        assert weights is not None, f"no factors in {case['kwargs']}"
        found = [1.0, *(weight for stage in SDXL_STAGES for weight in weights[stage]), 1.0]
        if found != case["result"]:
            mismatches.append(f"parse_block_lr_kwargs {case['kwargs']}: {found}, expected {case['result']}")
    return mismatches


TABLE_CHECKS: Mapping[str, Callable[[Any], list[str]]] = MappingProxyType(
    {
        "sshs_hashes": check_sshs_hashes,
        "get_remove_step_no": check_remove_step_no,
        "get_remove_epoch_no": check_remove_epoch_no,
        "lr_lambda": check_lr_lambda,
        "loss_weights": check_loss_weights,
        "noise_schedule_float64": check_noise_schedule,
        "parse_block_lr_kwargs_sdxl": check_block_lr_weights,
    }
)
