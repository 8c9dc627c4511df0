"""Gradients of batches, added up; and an optimizer at work, beside its rules (test_optimizer_rules has those)."""

import math

import numpy as np
import pytest
from mindspore import Tensor

from library.device.profile import Device
from library.training import gradients as gradients_module
from library.training.gradients import GradientSum
from library.training.optimizers.adafactor import Adafactor
from library.training.optimizers.adamw import AdamW
from library.training.optimizers.optimizer import Optimizer
from library.training.trained import Group, TrainedTensor
from tests.parity.traced import PROFILES

ALL = Group("all", 1e-3)

pytestmark = pytest.mark.usefixtures("device")
each_way = pytest.mark.parametrize("way", PROFILES)


@each_way
def test_gradients_are_added_up_and_their_norm_is_of_all(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a vector, a stack of matrices and a convolution's weight; on a host in chunks, of which the last is short."""
    monkeypatch.setattr(gradients_module, "_CHUNK", 7)
    rng = np.random.default_rng(3)
    kinds = ((1, (11,)), (3, (4, 6)), (1, (5, 3, 3, 3)))
    tensors = [
        TrainedTensor(tuple(f"{i}.{j}" for j in range(count)), ALL, [np.zeros(shape, np.float32)] * count, False)
        for i, (count, shape) in enumerate(kinds)
    ]
    batches = [[rng.standard_normal(x.array.shape).astype(np.float32) for x in tensors] for _ in range(3)]
    total = GradientSum(PROFILES[way])
    for gradients in batches:
        for tensor, gradient in zip(tensors, gradients, strict=True):
            total.add(tensor, Tensor(gradient.copy()))
    expected = [np.sum(of_one, axis=0, dtype=np.float64) for of_one in zip(*batches, strict=True)]
    assert total.norm() == pytest.approx(math.sqrt(sum((x**2).sum() for x in expected)), rel=1e-6)
    taken = total.take()
    assert list(taken) == tensors and total.take() == {}
    for found, wanted in zip(taken.values(), expected, strict=True):
        np.testing.assert_allclose(found.asnumpy(), wanted, rtol=1e-6, atol=1e-6)


@each_way
def test_the_usual_betas_are_not_rounded_away(way: str) -> None:
    """1 - 0.999 in float32 is 5e-5 off, and so would every step be."""
    tensor = TrainedTensor(("x",), ALL, [np.zeros(3, np.float32)], False)
    optimizer = Optimizer(AdamW(weight_decay=0.0), [tensor], Device(PROFILES[way]))
    optimizer.begin_step()
    optimizer.update(tensor, Tensor(np.full(3, 0.5, np.float32)), lr_factor=1.0)
    np.testing.assert_allclose(tensor.value.asnumpy(), -1e-3, rtol=1e-6)


@pytest.mark.parametrize("is_turned", [False, True])
def test_a_host_updates_in_place(is_turned: bool) -> None:
    """The values are the network's own arrays, which whoever saves them reads."""
    tensor = TrainedTensor(("x",), ALL, [np.zeros((3, 2), np.float32)], is_turned)
    seen = tensor.named(tensor.array)["x"]
    optimizer = Optimizer(AdamW(), [tensor], Device(PROFILES["CPU"]))
    gradient = np.array([[1, -1], [2, -2], [3, 3]], np.float32)
    optimizer.begin_step()
    optimizer.update(tensor, Tensor(gradient.copy()), lr_factor=1.0)
    np.testing.assert_allclose(seen, -1e-3 * np.sign(gradient.T if is_turned else gradient), rtol=1e-6)
    np.testing.assert_array_equal(tensor.value.asnumpy(), tensor.array)


def test_a_group_of_rate_0_is_not_trained_by_a_rule_that_chooses_its_own_rate() -> None:
    """As in the original, which gives such tensors to no optimizer."""
    tensor = TrainedTensor(("x",), Group("textencoder", 0.0), [np.ones((3, 2), np.float32)], False)
    optimizer = Optimizer(Adafactor(relative_step=True), [tensor], Device(PROFILES["CPU"]))
    optimizer.begin_step()
    optimizer.update(tensor, Tensor(np.ones((3, 2), np.float32)), lr_factor=1.0)
    np.testing.assert_array_equal(tensor.array, 1.0)
