"""One training step: forward, loss, gradients, clipping, update."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor

from library.device.cores import settled
from library.device.profile import Device
from library.graphs.block import Block
from library.graphs.program import Apply, bind
from library.training.block_tape import BlockTape
from library.training.gradients import GradientSum
from library.training.losses import LOSSES
from library.training.optimizers.optimizer import Optimizer
from library.training.trained import Trained, TrainedTensor

CLIP_EPS = 1e-6
"""Added to the norm that is divided by, as torch's clip_grad_norm_ does."""


@dataclass(frozen=True)
class StepInputs:
    """One batch, as a step takes it."""

    predict: Callable[[Apply], Tensor]
    """The model's prediction [B, C, H, W], given a way to apply blocks."""
    target_BCHW: np.ndarray
    """What is to be predicted."""
    weights_B1HW: np.ndarray
    """Weight of each squared error, [B, 1, 1, 1] where it is one per sample."""
    index: int
    """Number of the batch in the run; keys its dropout masks."""


@dataclass(frozen=True)
class StepResult:
    """What came of a batch."""

    loss: float
    has_updated: bool
    """Whether the batch was the last of an optimizer step."""
    grad_norm: float | None = None
    """Of all gradients of that step together, before clipping; None where nothing is clipped."""


class TrainStep:
    """Trains on batches.

    Args:
        weights: the model's, part -> key -> tensor.
        blocks: every block that the prediction runs, in the order of the forward pass.
        trained: what is trained.
        optimizer: its rule and state.
        device: where.
        max_grad_norm: gradients are scaled down to this norm of all of them; 0 does not clip.
        accumulation_steps: batches whose gradients are averaged into one update.
        block_keys: batch number -> random key of each block; None without dropout.
        keep: share of the blocks whose products are kept instead of computed again, see ``BlockTape``.
        loss_type: one of ``LOSSES``.
        fused: update each tensor as soon as its gradient is there. No gradients of all tensors then ever exist, so the
            norm is each tensor's own, and batches cannot be accumulated.
    """

    def __init__(
        self,
        weights: Mapping[str, Mapping[str, Tensor]],
        blocks: Iterable[Block],
        trained: Trained,
        optimizer: Optimizer,
        device: Device,
        *,
        max_grad_norm: float,
        accumulation_steps: int = 1,
        block_keys: Callable[[int], Mapping[Block, Tensor]] | None = None,
        keep: float = 0.0,
        loss_type: str = "l2",
        fused: bool = False,
    ) -> None:
        assert not fused or accumulation_steps == 1, "a fused update cannot wait for further batches"
        self.trained = trained
        self._device, self._optimizer = device, optimizer
        self._loss = Block("", LOSSES[loss_type])
        self._bound = trained.bind(weights, blocks, device) | {self._loss: bind(self._loss, {}, device)}
        self._max_grad_norm, self._accumulation_steps = max_grad_norm, accumulation_steps
        self._block_keys, self._keep, self._fused = block_keys, keep, fused
        self._sum = GradientSum(device.profile)
        self._pending = 0

    def __call__(self, inputs: StepInputs, lr_factor: float, ends_epoch: bool = False) -> StepResult:
        """Forward and backward, and an update if enough batches are there, or the epoch has no more.

        Args:
            inputs: the batch.
            lr_factor: the schedule's factor on the learning rates, should there be an update.
            ends_epoch: whether this is the epoch's last batch.

        Raises:
            FloatingPointError: the loss is not a number; nothing was changed.
        """
        with settled(self._device.profile):
            tape, loss, _ = self._forward(inputs)
            value = float(loss.asnumpy())
            if not np.isfinite(value):
                raise FloatingPointError(f"the loss is {value}")
            updates = self._pending + 1 >= self._accumulation_steps or ends_epoch
            if self._fused:
                self._optimizer.begin_step()
                tape.backward(Tensor(np.float32(1.0)), lambda held, grad: self._update_alone(held, grad, lr_factor))
                return StepResult(value, True)
            tape.backward(Tensor(np.float32(1.0)), self._sum.add)
            self._pending += 1
            return StepResult(value, True, self._update(lr_factor)) if updates else StepResult(value, False)

    def gradients(self, inputs: StepInputs) -> tuple[float, np.ndarray, dict[str, np.ndarray]]:
        """(loss, prediction, name -> gradient) of one batch; changes nothing."""
        found: dict[TrainedTensor, Tensor] = {}
        with settled(self._device.profile):
            tape, loss, pred = self._forward(inputs)
            tape.backward(Tensor(np.float32(1.0)), found.__setitem__)
        return float(loss.asnumpy()), pred.asnumpy(), self.trained.by_name(found)

    def _forward(self, inputs: StepInputs) -> tuple[BlockTape, Tensor, Tensor]:
        keys = self._block_keys(inputs.index) if self._block_keys else {}
        tape = BlockTape(self._bound, keys, keep=self._keep)
        pred = inputs.predict(tape)
        return tape, tape(self._loss, pred, Tensor(inputs.target_BCHW), Tensor(inputs.weights_B1HW)), pred

    def _update(self, lr_factor: float) -> float | None:
        """Apply what has been accumulated; returns the norm before clipping."""
        scale, norm = 1.0 / self._accumulation_steps, None
        if self._max_grad_norm > 0:
            norm = scale * self._sum.norm()
            scale *= _clip_factor(norm, self._max_grad_norm)
        self._optimizer.begin_step()
        for tensor, gradient in self._sum.take().items():
            self._optimizer.update(tensor, gradient, lr_factor, scale)
        self._pending = 0
        return norm

    def _update_alone(self, tensor: TrainedTensor, gradient: Tensor, lr_factor: float) -> None:
        """Update one tensor, clipped by the norm of its own gradient."""
        scale = 1.0
        if self._max_grad_norm > 0:
            own = GradientSum(self._device.profile)
            own.add(tensor, gradient)
            scale = _clip_factor(own.norm(), self._max_grad_norm)
        self._optimizer.update(tensor, gradient, lr_factor, scale)


def _clip_factor(norm: float, max_norm: float) -> float:
    return min(1.0, max_norm / (norm + CLIP_EPS))
