"""Factors on the learning rate by block of the UNet: kohya's down_lr_weight, mid_lr_weight and up_lr_weight."""

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from library.graphs.layer_target import LayerTarget

STAGES = ("down", "mid", "up")
BLOCK_ARGS = (*(f"{stage}_lr_weight" for stage in STAGES), "block_lr_zero_threshold")
CURVES: Mapping[str, Callable[[int, int], float]] = MappingProxyType(
    {
        "sine": lambda i, last: math.sin(math.pi / 2 * i / last),
        "cosine": lambda i, last: math.sin(math.pi / 2 * (last - i) / last),
        "linear": lambda i, last: i / last,
        "reverse_linear": lambda i, last: (last - i) / last,
        "zeros": lambda i, last: 0.0,
    }
)
"""Name -> factor of the i-th block of a stage whose last has the number ``last``."""


def stage_lengths(targets: Iterable[LayerTarget]) -> dict[str, int]:
    """Stage of the UNet -> number of its blocks, as the layers tell it."""
    lengths = dict.fromkeys(STAGES, 0)
    for target in targets:
        if target.stage:
            lengths[target.stage] = max(lengths[target.stage], target.stage_index + 1)
    return lengths


def block_lr_weights(args: Mapping[str, str], lengths: Mapping[str, int]) -> dict[str, list[float]] | None:
    """Stage -> factor of each of its blocks; None where no factors are given.

    A list that is too short goes on with 1, one that is too long is cut; factors of at most the threshold are 0.

    Args:
        args: the network's arguments as typed.
        lengths: stage -> number of blocks.

    Raises:
        ValueError: a text that is neither a list of numbers nor a curve.
    """
    given = {stage: args[f"{stage}_lr_weight"] for stage in STAGES if f"{stage}_lr_weight" in args}
    if not given:
        return None
    threshold = _number(args.get("block_lr_zero_threshold", "0"), "block_lr_zero_threshold")
    weights = {}
    for stage in STAGES:
        values = _values(given[stage], stage, lengths[stage]) if stage in given else []
        filled = (values + [1.0] * lengths[stage])[: lengths[stage]]
        weights[stage] = [value if value > threshold else 0.0 for value in filled]
    return weights


def _values(text: str, stage: str, length: int) -> list[float]:
    name, _, base = text.partition("+")
    if stage != "mid" and name.strip() in CURVES:
        added = _number(base, f"{stage}_lr_weight") if base else 0.0
        return [CURVES[name.strip()](i, max(1, length - 1)) + added for i in range(length)]
    return [_number(part, f"{stage}_lr_weight") if part.strip() else 0.0 for part in text.split(",")]


def _number(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(
            f"--network_args {name}: {text!r} is not a number; give numbers with commas between, or for down and up "
            f"one of {', '.join(CURVES)} (+ a number)"
        )
    return value
