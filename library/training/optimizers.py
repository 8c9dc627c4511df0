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
CLIP_EPS = 1e-6
"""Added to the norm that is divided by, as torch's clip_grad_norm_ does."""


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

    def scalars(self, step: int, grad_scale: float) -> Tensor:
        """What changes from step to step (1-based), as one small tensor, see ``build``.

        The factor on the gradient is in the weights of the moments, which costs no pass over the vector.
        """
        beta1, beta2 = self.betas
        weights = grad_scale * (1.0 - beta1), grad_scale**2 * (1.0 - beta2)
        return Tensor(np.array([*weights, 1.0 / math.sqrt(1.0 - beta2**step), 1.0 / (1.0 - beta1**step)], np.float32))

    def build(self) -> Callable[..., tuple[Tensor, ...]]:
        """(theta, grad, lr, scalars, m, v) -> (theta, m, v); lr is a scalar or a vector of theta's length."""
        beta1, beta2 = self.betas
        eps, weight_decay = self.eps, self.weight_decay

        def update(theta, grad, lr, scalars, m, v):  # type: ignore[no-untyped-def]  # read by the graph compiler
            m = m * beta1 + grad * scalars[0]
            v = v * beta2 + grad * grad * scalars[1]
            direction = m / (ops.sqrt(v) * scalars[2] + eps)
            theta = theta * (1.0 - lr * weight_decay) - direction * (lr * scalars[3])
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


def sum_of_squares(grad):  # type: ignore[no-untyped-def]  # read by the graph compiler
    """The squared length of a vector."""
    return (grad * grad).sum()


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
        self._sum_of_squares = ms.jit(sum_of_squares) if compiled else sum_of_squares
        self._rule = rule
        self._sizes = [min(CHUNK, size - begin) for begin in range(0, size, CHUNK)]
        self._lr = np.asarray(lr, np.float32)
        self._lr_chunks = self._split(Tensor(self._lr)) if self._lr.ndim else None
        self._state = [rule.init(length) for length in self._sizes]
        self.steps = 0

    def step(
        self, theta: Tensor, grad: Tensor, lr_factor: float, grad_scale: float = 1.0, max_norm: float = 0.0
    ) -> tuple[Tensor, float | None]:
        """One update.

        Args:
            theta: the trained vector.
            grad: its gradient.
            lr_factor: multiplies every base learning rate (the schedule).
            grad_scale: multiplies the gradient.
            max_norm: the gradient is scaled down to this norm where it is longer; 0 does not clip.

        Returns:
            the new vector, and the scaled gradient's norm before clipping, None without clipping.
        """
        self.steps += 1
        grads, norm = self._split(grad), None
        if max_norm > 0:
            norm = grad_scale * math.sqrt(sum(float(self._sum_of_squares(chunk).asnumpy()) for chunk in grads))
            grad_scale *= min(1.0, max_norm / (norm + CLIP_EPS))
        scalars = self._rule.scalars(self.steps, grad_scale)
        common_lr = Tensor((self._lr * np.float32(lr_factor)).reshape(1)) if self._lr_chunks is None else None
        updated = []
        for i, (theta_chunk, grad_chunk) in enumerate(zip(self._split(theta), grads, strict=True)):
            lr = self._lr_chunks[i] * lr_factor if self._lr_chunks is not None else common_lr
            theta_chunk, *state = self._update(theta_chunk, grad_chunk, lr, scalars, *self._state[i])
            updated.append(theta_chunk)
            self._state[i] = tuple(state)
        return (updated[0] if len(updated) == 1 else ops.concat(updated)), norm

    def _split(self, vector: Tensor) -> tuple[Tensor, ...]:
        return (vector,) if len(self._sizes) == 1 else ops.split(vector, self._sizes)
