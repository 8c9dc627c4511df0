"""One training step: forward, loss, gradients, clipping, update.

kohya users look here for: noise and targets -> ``noise_schedule``; loss weights -> ``custom_train_functions``;
optimizers and schedulers -> ``optimizers``, ``lr_schedules``; data sets -> ``library/data``; saving ->
``library/runs/saver``.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from mindspore import Tensor, ops

from library.device.cores import settled
from library.graphs.block import Block, Layers
from library.graphs.operations import mean
from library.graphs.program import BoundBlock, bind
from library.graphs.values import Value
from library.training.block_tape import BlockTape
from library.training.optimizers import FlatOptimizer
from library.training.trained import Trainable

Predict = Callable[[Callable[..., Tensor]], Tensor]
"""Given a way to run blocks, one batch's prediction [B, 4, H, W]."""


def weighted_mse(pred_BCHW: Value, target_BCHW: Value, weights_B1HW: Value, layers: Layers) -> Value:
    """Mean of the weighted squared errors; weights of [B, 1, 1, 1] hold for whole samples."""
    error = pred_BCHW - target_BCHW
    return mean(error * error * weights_B1HW)


LOSS = Block("", weighted_mse, "", ())


class TrainStep:
    """Trains the adapters of one network.

    Args:
        weights: base weights, part -> key -> tensor.
        blocks: every block that the prediction runs, in the order of the forward pass.
        trainable: the layout of what is trained.
        optimizer: its state and rule.
        max_grad_norm: clip the total norm to this; 0 does not clip.
        accumulation_steps: micro-steps per update; their losses are averaged.
        compiled: compile blocks and updates.
        block_keys: batch number -> one random key per segment; None without dropout.
        keep: share of the blocks whose products are kept instead of computed again, see ``BlockTape``.
    """

    def __init__(
        self,
        weights: Mapping[str, Mapping[str, Tensor]],
        blocks: Sequence[Block],
        trainable: Trainable,
        optimizer: FlatOptimizer,
        *,
        max_grad_norm: float,
        accumulation_steps: int = 1,
        compiled: bool = True,
        block_keys: Callable[[int], tuple[Tensor, ...]] | None = None,
        keep: float = 0.0,
    ) -> None:
        self.trainable = trainable
        ends = np.cumsum(optimizer.sizes)[:-1]
        self.thetas = tuple(Tensor(part) for part in np.split(trainable.pack(), ends))
        """What is trained: a vector for each of the optimizer's runs, changed in place by an update."""
        self._optimizer = optimizer
        self._bound = bind_all(weights, blocks, trainable, compiled)
        self._bound[LOSS] = bind(LOSS, {}, compiled=compiled)
        self._max_grad_norm = max_grad_norm
        self._accumulation_steps = accumulation_steps
        self._block_keys = block_keys
        self._keep = keep
        self._accumulated: Tensor | None = None
        self._pending = 0

    @settled()
    def loss_and_grad(
        self, predict: Predict, target_BCHW: Tensor, weights_B1HW: Tensor, index: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, prediction, gradient vector) of one batch; changes nothing. For the arguments see ``accumulate``."""
        keys = self._block_keys(index) if self._block_keys else None
        segments = self.trainable.split(*self.thetas)
        tape = BlockTape(self._bound, segments, keys, keep=self._keep)
        pred = predict(tape)
        loss = tape(LOSS, pred, target_BCHW, weights_B1HW)
        grads = tape.backward(Tensor(np.float32(1.0)))
        return loss, pred, ops.concat([grads[i] for i in range(len(segments))])

    def accumulate(self, predict: Predict, target_BCHW: np.ndarray, weights_B1HW: np.ndarray, index: int) -> float:
        """One batch forward and backward; adds to the gradient of the coming update and returns the loss.

        Args:
            predict: the batch's prediction, given a way to run blocks.
            target_BCHW: what is to be predicted.
            weights_B1HW: weight of each squared error, [B, 1, 1, 1] where it is one per sample.
            index: number of the batch in the run; keys its dropout masks.

        Raises:
            FloatingPointError: the loss is not a number; nothing was added.
        """
        loss, _, grad = self.loss_and_grad(predict, Tensor(target_BCHW), Tensor(weights_B1HW), index)
        value = float(loss.asnumpy())
        if not np.isfinite(value):
            raise FloatingPointError(f"the loss is {value}")
        self._accumulated = grad if self._accumulated is None else self._accumulated + grad
        self._pending += 1
        return value

    @property
    def is_full(self) -> bool:
        """Whether enough batches were accumulated for an update."""
        return self._pending >= self._accumulation_steps

    @settled()
    def update(self, lr_factor: float) -> float | None:
        """Apply what has been accumulated; returns the total norm before clipping (None without clipping).

        Args:
            lr_factor: the schedule's factor on the learning rates for this update.
        """
        assert self._accumulated is not None
        norm = self._optimizer.step(
            self.thetas,
            self._accumulated,
            lr_factor,
            grad_scale=1.0 / self._accumulation_steps,
            max_norm=self._max_grad_norm,
        )
        self._accumulated, self._pending = None, 0
        return norm

    def store(self) -> None:
        """Write the trained values into the network."""
        self.trainable.store(np.concatenate([theta.asnumpy() for theta in self.thetas]))


def bind_all(
    weights: Mapping[str, Mapping[str, Tensor]], blocks: Sequence[Block], trainable: Trainable, compiled: bool
) -> dict[Block, BoundBlock]:
    """Bind every block, those with adapters to their segment of the trained vector."""
    segment_of = {segment.block: i for i, segment in enumerate(trainable.segments)}
    bound = {}
    for block in blocks:
        i = segment_of.get(block)
        adapters = trainable.segments[i].adapters if i is not None else ()
        bound[block] = bind(block, weights, adapters, i, compiled)
    return bound
