"""Training steps of the toy family with given numbers, and their loss in NumPy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from mindspore import Tensor

from library.device.profile import Device
from library.families.base import BaseModel, BaseWeights
from library.graphs.block import Block
from library.graphs.program import Apply
from library.training.optimizers.optimizer import Optimizer
from library.training.optimizers.rule import Moment
from library.training.step import StepInputs, TrainStep
from library.training.trained import Trained
from tests.parity.toy_family import (
    DENOISER,
    WORDS,
    ToyFamily,
    ToySpec,
    numpy_prediction,
    numpy_words,
    time_features,
    toy_weights,
)

BATCH, SIDE, TOKENS = 2, 4, 5
LR = 0.25


@dataclass(frozen=True)
class Plain:
    """The value less the rate times the gradient: an update from which its gradient can be read."""

    elementwise: ClassVar[bool] = True

    def describe(self) -> str:
        """See Rule."""
        return "plain"

    def state_shapes(self, shape: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
        """The sum of all gradients, so that there is some state."""
        return {"sum": shape}

    def numbers(self, now: Moment) -> Mapping[str, float]:
        """See Rule."""
        return {"lr": now.lr}

    def update(
        self, maths: Any, value: Any, grad: Any, state: Mapping[str, Any], n: Mapping[str, Any]
    ) -> tuple[Any, Mapping[str, Any]]:
        """See Rule."""
        return value - grad * n["lr"], {"sum": state["sum"] + grad}


@dataclass(frozen=True)
class Given:
    """All numbers of a batch."""

    index: int = 0
    mixes: tuple[int, ...] = (0, 1)
    """Which of the two middle blocks are applied, in their order."""
    target_offset: float = 0.0
    noisy: np.ndarray = field(init=False)
    target: np.ndarray = field(init=False)
    times: np.ndarray = field(init=False)
    ids: np.ndarray = field(init=False)
    weights: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng([5, self.index])
        shape = (BATCH, 4, SIDE, SIDE)
        drawn = {
            "noisy": rng.standard_normal(shape, dtype=np.float32),
            "target": rng.standard_normal(shape, dtype=np.float32) + np.float32(self.target_offset),
            "times": rng.integers(0, 1000, BATCH),
            "ids": rng.integers(0, 50, (BATCH, TOKENS)),
            "weights": rng.uniform(0.5, 1.5, (BATCH, 1, 1, 1)).astype(np.float32),
        }
        for name, value in drawn.items():
            object.__setattr__(self, name, value)

    def inputs(self, spec: ToySpec) -> StepInputs:
        """As a step takes them; the text encoder is part of the step."""

        def predict(apply: Apply) -> Tensor:
            words = apply(spec.word, Tensor(self.ids.astype(np.int32)))
            x = apply(spec.enter, Tensor(self.noisy), Tensor(time_features(self.times)))
            for i in self.mixes:
                x = apply(spec.mixes[i], x, words)
            return apply(spec.leave, x)

        return StepInputs(predict, self.target, self.weights, self.index)

    def numpy_loss(self, weights: BaseWeights) -> float:
        """Mean of the weighted squared errors, in float64."""
        words = numpy_words(weights, self.ids)
        prediction = numpy_prediction(weights, self.noisy, self.times, words, self.mixes)
        return float(np.mean(self.weights * (prediction - self.target) ** 2))

    def numpy_slope(self, weights: BaseWeights, part: str, key: str, place: tuple[int, ...]) -> float:
        """How the loss changes with one value of a weight: a central difference."""
        step, losses = 1e-4, []
        for sign in (1, -1):
            array = weights.parts[part][key].astype(np.float64)
            array[place] += sign * step
            moved = {name: dict(named) for name, named in weights.parts.items()}
            moved[part][key] = array
            losses.append(self.numpy_loss(BaseWeights(moved, {})))
        return (losses[0] - losses[1]) / (2 * step)


def toy_model(device: Device) -> BaseModel:
    """The toy of seed 1."""
    return ToyFamily().build(toy_weights(1), device)


def blocks_of(model: BaseModel) -> tuple[Block, ...]:
    """All of its blocks, in the order of the forward pass."""
    return ToyFamily().blocks(model.spec, (WORDS, DENOISER))


def make_step(model: BaseModel, trained: Trained, rule: Any = None, **options: Any) -> TrainStep:
    """A step with a rule, ``Plain`` unless another is given; nothing is clipped unless asked for."""
    optimizer = Optimizer(Plain() if rule is None else rule, trained.tensors, model.device)
    options = {"max_grad_norm": 0.0} | options
    return TrainStep(model.weights, blocks_of(model), trained, optimizer, model.device, **options)


def copied(trained: Trained) -> dict[str, np.ndarray]:
    """Name -> value now."""
    return {name: array.copy() for name, array in trained.named().items()}
