"""Learning rates over time: one pure function of the step per --lr_scheduler. No MindSpore.

A curve maps a step (0 is the first optimizer step) to the factor of every group's learning rate. The formulas are those
of transformers' and diffusers' schedulers of the same names, as the original uses them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

LrLambda = Callable[[int], float]
DEFAULT_TIMESCALE = 10_000
DEFAULT_LR_END = 1e-7


@dataclass(frozen=True, kw_only=True)
class LrOptions:
    """The flags --lr_scheduler..., and what they refer to."""

    scheduler: str = "constant"
    total_steps: int
    """Optimizer steps of the whole run."""
    warmup_steps: int | float = 0
    """Steps; a float is a part of total_steps."""
    decay_steps: int | float = 0
    """Steps; a float is a part of total_steps."""
    num_cycles: int = 1
    power: float = 1.0
    timescale: int | None = None
    min_lr_ratio: float | None = None
    learning_rate: float
    """--learning_rate, to which lr_end and min_lr are compared."""
    scheduler_args: Mapping[str, Any] = field(default_factory=dict)
    """--lr_scheduler_args as values by name."""


def make_lr_lambda(options: LrOptions) -> LrLambda:
    """The curve of the options. Raises ValueError when they do not fit together, telling all faults."""
    name, total = options.scheduler, options.total_steps
    if name in _REFUSED:
        raise ValueError(f"--lr_scheduler {name}: {_REFUSED[name]}")
    if name not in _CURVES:
        raise ValueError(f"--lr_scheduler {name}: there is no such schedule; allowed are {', '.join(_CURVES)}")
    make, args_allowed, takes_warmup = _CURVES[name]
    warmup = _steps(options.warmup_steps, total)
    problems = [
        f"--lr_scheduler_args {key}=...: {name} does not take it; allowed: {', '.join(args_allowed) or 'nothing'}"
        for key in options.scheduler_args
        if key not in args_allowed
    ]
    if warmup and not takes_warmup:
        other = "use constant_with_warmup, or" if name == "constant" else "take another schedule, or"
        problems.append(f"--lr_warmup_steps {options.warmup_steps}: {name} has no warmup; {other} leave the flag away")
    if problems:
        raise ValueError("\n".join(problems))
    return make(options, warmup)


def _steps(value: float, total: int) -> int:
    return int(value * total) if isinstance(value, float) else int(value)


def _progress(step: int, warmup: int, total: int) -> float:
    """Part of the steps after the warmup that are done."""
    return (step - warmup) / max(1, total - warmup)


def _half_cosine(progress: float, half_cycles: float = 1) -> float:
    """From 1 down to 0 in each half-cycle, and up again in the next."""
    return 0.5 * (1 + math.cos(math.pi * half_cycles * progress))


def _with_warmup(warmup: int, after: LrLambda) -> LrLambda:
    """A straight line from 0 to 1 over the warmup, then the curve."""
    return lambda step: step / max(1, warmup) if step < warmup else after(step)


def _constant(options: LrOptions, warmup: int) -> LrLambda:
    return _with_warmup(warmup, lambda step: 1.0)


def _linear(options: LrOptions, warmup: int) -> LrLambda:
    total = options.total_steps
    return _with_warmup(warmup, lambda step: max(0.0, (total - step) / max(1, total - warmup)))


def _cosine(options: LrOptions, warmup: int) -> LrLambda:
    half_cycles = 2 * _number(options, "num_cycles", 0.5)
    return _with_warmup(
        warmup, lambda step: max(0.0, _half_cosine(_progress(step, warmup, options.total_steps), half_cycles))
    )


def _cosine_with_restarts(options: LrOptions, warmup: int) -> LrLambda:
    def curve(step: int) -> float:
        progress = _progress(step, warmup, options.total_steps)
        return 0.0 if progress >= 1 else max(0.0, _half_cosine(options.num_cycles * progress % 1))

    return _with_warmup(warmup, curve)


def _polynomial(options: LrOptions, warmup: int) -> LrLambda:
    """From the learning rate down to lr_end; measured against --learning_rate even where a group has its own rate."""
    start, end = options.learning_rate, _number(options, "lr_end", DEFAULT_LR_END)
    if end >= start:
        raise ValueError(
            f"--lr_scheduler polynomial: its lr_end {end} must be below --learning_rate {start}; set it with "
            "--lr_scheduler_args lr_end=..."
        )

    def curve(step: int) -> float:
        if step > options.total_steps:
            return end / start
        remaining = max(0.0, 1 - _progress(step, warmup, options.total_steps))
        return ((start - end) * math.pow(remaining, options.power) + end) / start

    return _with_warmup(warmup, curve)


def _inverse_sqrt(options: LrOptions, warmup: int) -> LrLambda:
    timescale = options.timescale or warmup or DEFAULT_TIMESCALE
    return _with_warmup(warmup, lambda step: 1 / math.sqrt((step + timescale - warmup) / timescale))


def _cosine_with_min_lr(options: LrOptions, warmup: int) -> LrLambda:
    lowest = _min_ratio(options)

    def curve(step: int) -> float:
        factor = _half_cosine(_progress(step, warmup, options.total_steps), options.num_cycles)
        return max(0.0, factor * (1 - lowest) + lowest)

    return _with_warmup(warmup, curve)


def _min_ratio(options: LrOptions) -> float:
    """Lowest rate as a part of the full one; given as a ratio or, in the arguments, as a rate."""
    if (options.min_lr_ratio is None) == ("min_lr" not in options.scheduler_args):
        given = "neither is" if options.min_lr_ratio is None else "both are"
        raise ValueError(
            f"--lr_scheduler {options.scheduler} needs one of --lr_scheduler_min_lr_ratio and --lr_scheduler_args "
            f"min_lr=..., {given} given"
        )
    if options.min_lr_ratio is not None:
        return options.min_lr_ratio
    return _number(options, "min_lr", 0.0) / options.learning_rate


# Part of the warmup done -> part of the way up; the decay runs the same way down.
_RAMPS: Mapping[str, Callable[[float], float]] = MappingProxyType(
    {
        "linear": lambda progress: progress,
        "cosine": lambda progress: 0.5 * (1 - math.cos(math.pi * progress)),
        "1-sqrt": lambda progress: 1 - math.sqrt(1 - progress),
    }
)


def _warmup_stable_decay(options: LrOptions, warmup: int) -> LrLambda:
    """Up from the lowest rate, flat, and in the last decay_steps down to it again."""
    lowest = options.min_lr_ratio or 0.0
    decay = _steps(options.decay_steps, options.total_steps)
    decay_begin = options.total_steps - decay
    rise = _RAMPS[_ramp_name(options, "warmup_type", "linear")]
    decay_type = _ramp_name(options, "decay_type", "cosine")
    falls: Mapping[str, Callable[[float], float]] = {
        "linear": lambda progress: 1 - progress,
        "cosine": lambda progress: _half_cosine(progress, options.num_cycles),
        "1-sqrt": lambda progress: 1 - math.sqrt(progress),
    }

    def curve(step: int) -> float:
        if step < warmup:
            factor = rise(step / max(1, warmup))
        elif step < decay_begin:
            factor = 1.0
        elif step < options.total_steps:
            factor = falls[decay_type]((step - decay_begin) / max(1, decay))
        else:
            factor = 0.0
        return max(0.0, factor * (1 - lowest) + lowest)

    return curve


def _ramp_name(options: LrOptions, key: str, default: str) -> str:
    name = str(options.scheduler_args.get(key, default))
    if name not in _RAMPS:
        raise ValueError(f"--lr_scheduler_args {key}={name}: allowed are {', '.join(_RAMPS)}")
    return name


def _piecewise_constant(options: LrOptions, warmup: int) -> LrLambda:
    """``step_rules="1:10,0.1:20,0.01"``: factor 1 for steps below 10, 0.1 below 20, then 0.01."""
    rules = str(options.scheduler_args.get("step_rules", ""))
    try:
        *timed, last = rules.split(",")
        pairs = [rule.split(":") for rule in timed]
        steps = sorted((int(until), float(factor)) for factor, until in pairs)
        final = float(last)
    except ValueError as error:
        raise ValueError(
            f"--lr_scheduler_args step_rules={rules!r}: it must be FACTOR:STEP,...,FACTOR in quotes, for example "
            "step_rules=\"'1:10,0.1:20,0.01'\""
        ) from error
    return lambda step: next((factor for until, factor in steps if step < until), final)


def _number(options: LrOptions, key: str, default: float) -> float:
    value = options.scheduler_args.get(key, default)
    if type(value) not in (int, float):
        raise ValueError(f"--lr_scheduler_args {key}={value!r}: it must be a number")
    return float(value)


# Name -> (curve, names allowed in --lr_scheduler_args, whether it has a warmup)
_CURVES: Mapping[str, tuple[Callable[[LrOptions, int], LrLambda], tuple[str, ...], bool]] = MappingProxyType(
    {
        "constant": (_constant, (), False),
        "constant_with_warmup": (_constant, (), True),
        "linear": (_linear, (), True),
        "cosine": (_cosine, ("num_cycles",), True),
        "cosine_with_restarts": (_cosine_with_restarts, (), True),
        "polynomial": (_polynomial, ("lr_end",), True),
        "inverse_sqrt": (_inverse_sqrt, (), True),
        "cosine_with_min_lr": (_cosine_with_min_lr, ("min_lr",), True),
        "warmup_stable_decay": (_warmup_stable_decay, ("warmup_type", "decay_type"), True),
        "piecewise_constant": (_piecewise_constant, ("step_rules",), False),
    }
)
SCHEDULERS = tuple(_CURVES)
_REFUSED = MappingProxyType(
    {
        "adafactor": "the Adafactor optimizer with relative_step=True sets it by itself; leave the flag away",
        "reduce_lr_on_plateau": "it fails in the original too; use cosine or warmup_stable_decay",
        "cosine_warmup_with_min_lr": "it fails in the original too; use cosine_with_min_lr with --lr_warmup_steps",
    }
)
