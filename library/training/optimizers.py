"""Optimizers as pure functions on the flat vector of what is trained."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

State = tuple[Tensor, ...]
CHUNK = 1 << 22
"""Values that are updated at once: an update's intermediate results take about ten times their memory."""


@dataclass(frozen=True)
class AdamW:
    """AdamW with bias correction and decoupled weight decay (Loshchilov and Hutter 2019), as torch.optim.AdamW.

    MindSpore's own nn.AdamWeightDecay has no bias correction, which makes the first steps 3 to 5 times too long.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        problems = []
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            problems.append(f"betas={self.betas}: two numbers of at least 0 and below 1")
        if not self.eps >= 0.0:
            problems.append(f"eps={self.eps}: must not be negative")
        if not self.weight_decay >= 0.0:
            problems.append(f"weight_decay={self.weight_decay}: must not be negative")
        if problems:
            raise ValueError("--optimizer_args " + "; ".join(problems))

    def describe(self) -> str:
        """As kohya writes it to ss_optimizer."""
        return f"torch.optim.adamw.AdamW(betas={self.betas},eps={self.eps},weight_decay={self.weight_decay})"

    def init(self, size: int) -> State:
        """First and second moments, zero."""
        return Tensor(np.zeros(size, np.float32)), Tensor(np.zeros(size, np.float32))

    def scalars(self, step: int) -> Tensor:
        """What changes from step to step (1-based), as one small tensor: the two bias corrections."""
        beta1, beta2 = self.betas
        return Tensor(np.array([1.0 - beta1**step, math.sqrt(1.0 - beta2**step)], np.float32))

    def build(self) -> Callable[..., tuple[Tensor, ...]]:
        """(theta, grad, lr, scalars, m, v) -> (theta, m, v); lr is a scalar or a vector of theta's length."""
        beta1, beta2 = self.betas
        eps, weight_decay = self.eps, self.weight_decay

        def update(theta, grad, lr, scalars, m, v):  # type: ignore[no-untyped-def]  # read by the graph compiler
            m = m * beta1 + grad * (1.0 - beta1)
            v = v * beta2 + grad * grad * (1.0 - beta2)
            direction = m / (ops.sqrt(v) / scalars[1] + eps)
            theta = theta * (1.0 - lr * weight_decay) - direction * (lr / scalars[0])
            return theta, m, v

        return update


OPTIMIZERS: Mapping[str, type[AdamW]] = {"adamw": AdamW}
"""Name in lower case -> class; kohya's empty name means AdamW."""


def make_optimizer(optimizer_type: str, optimizer_args: Mapping[str, object]) -> AdamW:
    """The optimizer that ``--optimizer_type`` and ``--optimizer_args`` ask for.

    Raises:
        ValueError: an optimizer that is not built, or an argument that it does not have.
    """
    cls = OPTIMIZERS.get(optimizer_type.lower() or "adamw")
    if cls is None:
        raise ValueError(f"--optimizer_type {optimizer_type}: not built yet; use {', '.join(sorted(OPTIMIZERS))}")
    known = cls.__dataclass_fields__
    unknown = sorted(set(optimizer_args) - set(known))
    if unknown:
        raise ValueError(
            f"--optimizer_args {', '.join(unknown)}: not an argument of {optimizer_type or 'AdamW'}, "
            f"which has {', '.join(known)}"
        )
    return cls(**optimizer_args)  # type: ignore[arg-type]


class FlatOptimizer:
    """An optimizer with its state and learning rates.

    Args:
        rule: the update rule.
        size: length of the trained vector.
        lr: base learning rate of each value, or one for all.
        compiled: compile the update.
    """

    def __init__(self, rule: AdamW, size: int, lr: np.ndarray | float, compiled: bool) -> None:
        update = rule.build()
        self._update = ms.jit(update) if compiled else update
        self._rule = rule
        self._sizes = [min(CHUNK, size - begin) for begin in range(0, size, CHUNK)]
        self._lr = np.asarray(lr, np.float32)
        self._lr_chunks = self._split(Tensor(self._lr)) if self._lr.ndim else None
        self._state = [rule.init(length) for length in self._sizes]
        self.steps = 0

    def step(self, theta: Tensor, grad: Tensor, lr_factor: float) -> Tensor:
        """One update; ``lr_factor`` multiplies every base learning rate (the schedule)."""
        self.steps += 1
        scalars = self._rule.scalars(self.steps)
        common_lr = Tensor((self._lr * np.float32(lr_factor)).reshape(1)) if self._lr_chunks is None else None
        updated = []
        for i, (theta_chunk, grad_chunk) in enumerate(zip(self._split(theta), self._split(grad), strict=True)):
            lr = self._lr_chunks[i] * lr_factor if self._lr_chunks is not None else common_lr
            theta_chunk, *state = self._update(theta_chunk, grad_chunk, lr, scalars, *self._state[i])
            updated.append(theta_chunk)
            self._state[i] = tuple(state)
        return updated[0] if len(updated) == 1 else ops.concat(updated)

    def _split(self, vector: Tensor) -> tuple[Tensor, ...]:
        return (vector,) if len(self._sizes) == 1 else ops.split(vector, self._sizes)
