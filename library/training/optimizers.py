"""Optimizers: update rules that change the vectors of what is trained in place, and their state."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor, ops

from library.device.vectors import parts_of, scaled, sum_of_squares

State = tuple[Tensor, ...]
CLIP_EPS = 1e-6
"""Added to the norm that is divided by, as torch's clip_grad_norm_ does."""
_ADAM_WEIGHT_DECAY = ops.AdamWeightDecay()


@dataclass(frozen=True)
class AdamW:
    """AdamW with bias correction and decoupled weight decay (Loshchilov and Hutter 2019), as torch.optim.AdamW.

    The arithmetic is MindSpore's kernel, one pass over the vectors in place. It knows no bias correction, which would
    make the first steps 3 to 5 times too long; so the correction is in the numbers that it is given.
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

    def update(self, theta: Tensor, grad: Tensor, lr: float, step: int, state: State) -> None:
        """Change theta and the moments in place; ``step`` counts from 1.

        The kernel computes theta -= lr (m / (sqrt(v) + eps) + decay theta).
        """
        # What the weights of new gradients add up to in m and v: the kernel subtracts betas from 1 in float32.
        m_total, v_total = (
            (1.0 - beta**step) * float(np.float32(1.0) - np.float32(beta)) / (1.0 - beta) for beta in self.betas
        )
        root = math.sqrt(v_total)
        decay = self.weight_decay * m_total / root
        _ADAM_WEIGHT_DECAY(theta, *state, lr * root / m_total, *self.betas, self.eps * root, decay, grad)


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
        runs: length and base learning rate of each vector that is trained.
    """

    def __init__(self, rule: AdamW, runs: Sequence[tuple[int, float]]) -> None:
        self._rule = rule
        self.sizes = tuple(size for size, _ in runs)
        """Lengths of the trained vectors."""
        self._rates = tuple(rate for _, rate in runs)
        self._states = tuple(rule.init(size) for size in self.sizes)
        self.steps = 0

    def step(
        self, thetas: Sequence[Tensor], grad: Tensor, lr_factor: float, grad_scale: float = 1.0, max_norm: float = 0.0
    ) -> float | None:
        """One update, in place.

        Args:
            thetas: the trained vectors.
            grad: the gradient of all of them, one behind the other; may be scaled in place.
            lr_factor: multiplies every base learning rate (the schedule).
            grad_scale: multiplies the gradient.
            max_norm: the gradient is scaled down to this norm where it is longer; 0 does not clip.

        Returns:
            the scaled gradient's norm before clipping, None without clipping.
        """
        self.steps += 1
        norm = None
        if max_norm > 0:
            norm = grad_scale * math.sqrt(sum_of_squares(grad))
            grad_scale *= min(1.0, max_norm / (norm + CLIP_EPS))
        if grad_scale != 1.0:
            grad = scaled(grad, grad_scale)
        grads = parts_of(grad, [(size,) for size in self.sizes])
        for theta, part, rate, state in zip(thetas, grads, self._rates, self._states, strict=True):
            self._rule.update(theta, part, rate * lr_factor, self.steps, state)
        return norm
