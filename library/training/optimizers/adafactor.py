"""Adafactor (Shazeer and Stern 2018, https://arxiv.org/abs/1804.04235, algorithms 4 and 5)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from library.training.optimizers.rule import Array, Maths, Moment, Shape, optimizer, refuse_wrong

MAX_RELATIVE_STEP = 1e-2
WARMUP_STEP = 1e-6
"""Growth of that bound with each step under ``warmup_init``."""


@optimizer("Adafactor")
@dataclass(frozen=True)
class Adafactor:
    """As transformers.optimization.Adafactor.

    A matrix's second moment is the product of a row's and a column's; a tensor of more axes is a set of matrices over
    its last two. With ``relative_step``, which
    ``warmup_init`` implies, the step chooses the learning rate and the groups' rates have no part in it.
    """

    eps: tuple[float, float] = (1e-30, 1e-3)
    clip_threshold: float = 1.0
    decay_rate: float = -0.8
    beta1: float | None = None
    weight_decay: float = 0.0
    scale_parameter: bool = True
    relative_step: bool = True
    warmup_init: bool = False

    elementwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        refuse_wrong(
            (len(self.eps) != 2 or not min(self.eps) >= 0, f"eps={self.eps}: two numbers of at least 0"),
            (not self.clip_threshold > 0.0, f"clip_threshold={self.clip_threshold}: must be above 0"),
            (not self.decay_rate < 0.0, f"decay_rate={self.decay_rate}: must be below 0"),
            (self.beta1 is not None and not 0.0 <= self.beta1 < 1.0, f"beta1={self.beta1}: at least 0 and below 1"),
            (not self.weight_decay >= 0.0, f"weight_decay={self.weight_decay}: must not be negative"),
        )

    def describe(self) -> str:
        """See Rule."""
        settings = ",".join(
            f"{name}={vars(self)[name]}" for name in ("scale_parameter", "relative_step", "warmup_init")
        )
        return f"transformers.optimization.Adafactor({settings})"

    def state_shapes(self, shape: Shape) -> Mapping[str, Shape]:
        """Means of squares by row and by column; of a vector those of its values."""
        first = {"exp_avg": shape} if self.beta1 is not None else {}
        if len(shape) < 2:
            return {"exp_avg_sq": shape, **first}
        return {"exp_avg_sq_row": (*shape[:-1], 1), "exp_avg_sq_col": (*shape[:-2], 1, shape[-1]), **first}

    def numbers(self, now: Moment) -> Mapping[str, float]:
        """See Rule."""
        lr = now.lr
        if self.relative_step or self.warmup_init:
            bound = WARMUP_STEP * now.step if self.warmup_init else MAX_RELATIVE_STEP
            lr = min(bound, 1.0 / math.sqrt(now.step))
        decay = self.weight_decay if now.weight_decay is None else now.weight_decay
        return {"lr": lr, "beta2": 1.0 - now.step**self.decay_rate, "decay": decay}

    def update(
        self, maths: Maths, value: Array, grad: Array, state: Mapping[str, Array], n: Mapping[str, Any]
    ) -> tuple[Array, Mapping[str, Array]]:
        """See Rule."""
        whole = tuple(range(1, len(value.shape)))
        beta2, old, new = n["beta2"], state, {}
        squares = grad * grad + self.eps[0]

        def averaged(name: str, square: Array) -> Array:
            new[name] = old[name] * beta2 + square * (1.0 - beta2)
            return new[name]

        if "exp_avg_sq" in old:
            step = grad / maths.sqrt(averaged("exp_avg_sq", squares))
        else:
            row = averaged("exp_avg_sq_row", maths.mean(squares, (-1,)))
            column = averaged("exp_avg_sq_col", maths.mean(squares, (-2,)))
            step = grad / maths.sqrt(row / maths.mean(row, (-2,))) / maths.sqrt(column)
        lr = n["lr"]
        if self.scale_parameter:
            lr = maths.maximum(_rms(maths, value, whole), self.eps[1]) * lr
        step = step / maths.maximum(_rms(maths, step, whole) * (1.0 / self.clip_threshold), 1.0) * lr
        if self.beta1 is not None:
            step = old["exp_avg"] * self.beta1 + step * (1.0 - self.beta1)
            new["exp_avg"] = step
        return value - value * (lr * n["decay"]) - step, new


def _rms(maths: Maths, x: Array, axes: tuple[int, ...]) -> Array:
    """Root of the mean square of each tensor."""
    return maths.sqrt(maths.mean(x * x, axes))
