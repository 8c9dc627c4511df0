"""Lion (Chen and others 2023, https://arxiv.org/abs/2302.06675, algorithm 2)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from library.training.optimizers.adamw import are_betas
from library.training.optimizers.rule import Array, Maths, Moment, Shape, optimizer, refuse_wrong


@optimizer("Lion")
@dataclass(frozen=True)
class Lion:
    """Steps of one length by the sign of a moving average, as lion_pytorch.Lion."""

    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0

    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        refuse_wrong(
            (not are_betas(self.betas), f"betas={self.betas}: two numbers of at least 0 and below 1"),
            (not self.weight_decay >= 0.0, f"weight_decay={self.weight_decay}: must not be negative"),
        )

    def describe(self) -> str:
        """See Rule."""
        return f"lion_pytorch.lion_pytorch.Lion(betas={self.betas},weight_decay={self.weight_decay})"

    def state_shapes(self, shape: Shape) -> Mapping[str, Shape]:
        """The moving average."""
        return {"exp_avg": shape}

    def numbers(self, now: Moment) -> Mapping[str, float]:
        """See Rule."""
        decay = self.weight_decay if now.weight_decay is None else now.weight_decay
        return {"kept": 1.0 - now.lr * decay, "lr": now.lr}

    def update(
        self, maths: Maths, value: Array, grad: Array, state: Mapping[str, Array], n: Mapping[str, Any]
    ) -> tuple[Array, Mapping[str, Array]]:
        """See Rule."""
        beta1, beta2 = self.betas
        exp_avg = state["exp_avg"]
        direction = maths.sign(exp_avg * beta1 + grad * (1.0 - beta1))
        return value * n["kept"] - direction * n["lr"], {"exp_avg": exp_avg * beta2 + grad * (1.0 - beta2)}
