"""AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101, algorithm 2)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from library.training.optimizers.rule import Array, Maths, Moment, Shape, optimizer, refuse_wrong


@optimizer("AdamW")
@dataclass(frozen=True)
class AdamW:
    """With bias correction and decoupled weight decay, as torch.optim.AdamW."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01

    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        refuse_wrong(
            (not are_betas(self.betas), f"betas={self.betas}: two numbers of at least 0 and below 1"),
            (not self.eps >= 0.0, f"eps={self.eps}: must not be negative"),
            (not self.weight_decay >= 0.0, f"weight_decay={self.weight_decay}: must not be negative"),
        )

    def describe(self) -> str:
        """See Rule."""
        return f"torch.optim.adamw.AdamW(betas={self.betas},eps={self.eps},weight_decay={self.weight_decay})"

    def state_shapes(self, shape: Shape) -> Mapping[str, Shape]:
        """First and second moment."""
        return {"exp_avg": shape, "exp_avg_sq": shape}

    def numbers(self, now: Moment) -> Mapping[str, float]:
        """See Rule."""
        beta1, beta2 = self.betas
        decay = self.weight_decay if now.weight_decay is None else now.weight_decay
        return {
            "kept": 1.0 - now.lr * decay,
            "step_size": now.lr / (1.0 - beta1**now.step),
            "root": 1.0 / math.sqrt(1.0 - beta2**now.step),
        }

    def update(
        self, maths: Maths, value: Array, grad: Array, state: Mapping[str, Array], n: Mapping[str, Any]
    ) -> tuple[Array, Mapping[str, Array]]:
        """See Rule."""
        beta1, beta2 = self.betas
        exp_avg = state["exp_avg"] * beta1 + grad * (1.0 - beta1)
        exp_avg_sq = state["exp_avg_sq"] * beta2 + grad * grad * (1.0 - beta2)
        value = value * n["kept"] - exp_avg / (maths.sqrt(exp_avg_sq) * n["root"] + self.eps) * n["step_size"]
        return value, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}


def are_betas(betas: object) -> bool:
    """Whether something is two numbers of at least 0 and below 1."""
    return (
        isinstance(betas, tuple | list)
        and len(betas) == 2
        and all(isinstance(beta, int | float) and 0.0 <= beta < 1.0 for beta in betas)
    )
