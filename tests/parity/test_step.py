"""The step around the gradients: averaging, clipping, rates, dropout keys, and what happens when a loss is no number.

The rule is plain descent, so that an update shows the gradient that it was given.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from library.data.run_rng import RunRng
from library.device.profile import Device
from library.runs.train_network import dropout_keys
from library.training.step import StepResult, TrainStep
from library.training.trained import Group, Trained, trained_adapters, trained_weights
from networks import lora
from tests.parity.toy_family import DENOISER, ToyFamily, toy_weights
from tests.parity.toy_steps import LR, Given, blocks_of, copied, make_step, toy_model
from tests.parity.traced import PROFILES

pytestmark = pytest.mark.usefixtures("device")

TOLERANCE = {"rtol": 2e-5, "atol": 1e-7}
"""Both sides are float32, and the updates are differences of values near 1."""
ONE_RATE = Group("all", LR)
DEVICES = [pytest.param(Device(profile), id=name) for name, profile in PROFILES.items()]


def two_rates(name: str) -> Group:
    return Group("biases", LR / 5) if name.endswith("bias") else ONE_RATE


def denoiser_step(device: Device, group_of: Callable[[str], Group] = two_rates, **options: object) -> TrainStep:
    """All weights of the denoiser are trained."""
    model = toy_model(device)
    trained = trained_weights(model.weights, blocks_of(model), lambda part, key: part == DENOISER, group_of)
    return make_step(model, trained, **options)


def gradients_of(given: Given) -> dict[str, np.ndarray]:
    """By a step that changes nothing."""
    step = denoiser_step(Device(PROFILES["CPU"]))
    return {name: gradient.copy() for name, gradient in step.gradients(given.inputs(SPEC))[2].items()}


SPEC = ToyFamily().spec(toy_weights(1))
GIVEN = [Given(index) for index in range(4)]


def go(step: TrainStep, given: Given, *arguments: object) -> StepResult:
    return step(given.inputs(SPEC), *arguments)


def changes(before: dict[str, np.ndarray], trained: Trained) -> dict[str, np.ndarray]:
    return {name: value - before[name] for name, value in copied(trained).items()}


def norm(gradients: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in gradients.values())))


@pytest.mark.parametrize("device", DEVICES)
def test_an_update_is_by_the_mean_gradient_of_all_batches_since_the_last(device: Device) -> None:
    step = denoiser_step(device, accumulation_steps=2)
    before, found = copied(step.trained), [gradients_of(given) for given in GIVEN[:2]]
    assert not go(step, GIVEN[0], 1.0).has_updated
    assert all((change == 0).all() for change in changes(before, step.trained).values())
    result = go(step, GIVEN[1], 0.5)
    assert (result.has_updated, result.grad_norm) == (True, None)
    assert result.loss == pytest.approx(GIVEN[1].numpy_loss(toy_weights(1)), rel=2e-6)
    for name, change in changes(before, step.trained).items():
        expected = -0.5 * two_rates(name).lr * (found[0][name] + found[1][name]) / 2
        np.testing.assert_allclose(change, expected, rtol=1e-3, atol=3e-7, err_msg=name)


def test_a_short_last_group_of_an_epoch_is_divided_by_the_whole_number_all_the_same() -> None:
    """As accelerate does: the loss was divided before anybody knew that there would be no other batch."""
    step = denoiser_step(Device(PROFILES["CPU"]), accumulation_steps=3)
    before, found = copied(step.trained), gradients_of(GIVEN[0])
    assert go(step, GIVEN[0], 1.0, True).has_updated
    for name, change in changes(before, step.trained).items():
        np.testing.assert_allclose(change, -two_rates(name).lr * found[name] / 3, rtol=1e-3, atol=3e-7, err_msg=name)
    assert not go(step, GIVEN[1], 1.0).has_updated, "the next group begins afresh"


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_are_clipped_by_the_norm_of_all_of_them_before_the_update(device: Device) -> None:
    found = [gradients_of(given) for given in GIVEN[:2]]
    mean = {name: (gradient + found[1][name]) / 2 for name, gradient in found[0].items()}
    limit = norm(mean) / 3
    step = denoiser_step(device, accumulation_steps=2, max_grad_norm=limit)
    before = copied(step.trained)
    go(step, GIVEN[0], 1.0)
    result = go(step, GIVEN[1], 1.0)
    assert result.grad_norm == pytest.approx(norm(mean), rel=1e-5), "before clipping"
    for name, change in changes(before, step.trained).items():
        np.testing.assert_allclose(change, -two_rates(name).lr * mean[name] / 3, rtol=1e-3, atol=3e-7, err_msg=name)


def test_a_norm_within_the_limit_changes_nothing() -> None:
    found = gradients_of(GIVEN[0])
    step = denoiser_step(Device(PROFILES["CPU"]), max_grad_norm=2 * norm(found))
    before = copied(step.trained)
    go(step, GIVEN[0], 1.0)
    for name, change in changes(before, step.trained).items():
        np.testing.assert_allclose(change, -two_rates(name).lr * found[name], rtol=1e-3, atol=3e-7, err_msg=name)


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_of_one_update_are_gone_at_the_next(device: Device) -> None:
    once, twice = denoiser_step(device), denoiser_step(device)
    go(twice, GIVEN[0], 0.0)
    go(once, GIVEN[1], 1.0)
    go(twice, GIVEN[1], 1.0)
    for name, value in copied(once.trained).items():
        np.testing.assert_array_equal(copied(twice.trained)[name], value)


@pytest.mark.parametrize("fused", [False, True])
def test_a_loss_that_is_no_number_changes_nothing(fused: bool) -> None:
    step = denoiser_step(Device(PROFILES["CPU"]), accumulation_steps=1 if fused else 2, fused=fused)
    other = denoiser_step(Device(PROFILES["CPU"]), accumulation_steps=1 if fused else 2, fused=fused)
    if not fused:
        go(step, GIVEN[0], 1.0)
        go(other, GIVEN[0], 1.0)
    before = copied(step.trained)
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        go(step, Given(7, target_offset=np.nan), 1.0)
    assert all((change == 0).all() for change in changes(before, step.trained).values())
    go(step, GIVEN[1], 1.0)
    go(other, GIVEN[1], 1.0)
    for name, value in copied(other.trained).items():
        np.testing.assert_array_equal(copied(step.trained)[name], value)


def test_steps_are_counted_once_whatever_is_accumulated() -> None:
    """An optimizer's bias correction counts updates, not batches or tensors."""
    step = denoiser_step(Device(PROFILES["CPU"]), accumulation_steps=2)
    for given in GIVEN:
        go(step, given, 1.0)
    assert step._optimizer.steps == 2
    fused = denoiser_step(Device(PROFILES["CPU"]), fused=True)
    for given in GIVEN:
        go(fused, given, 1.0)
    assert fused._optimizer.steps == 4


def test_gradients_of_a_batch_change_nothing() -> None:
    step = denoiser_step(Device(PROFILES["CPU"]), accumulation_steps=2)
    before = copied(step.trained)
    loss, pred, found = step.gradients(GIVEN[0].inputs(SPEC))
    assert loss == pytest.approx(GIVEN[0].numpy_loss(toy_weights(1)), rel=2e-6)
    assert pred.shape == GIVEN[0].target.shape
    assert all((change == 0).all() for change in changes(before, step.trained).values())
    assert not go(step, GIVEN[0], 1.0).has_updated, "it does not count as a batch"
    assert set(found) == set(before)


# --- dropout ----------------------------------------------------------------------------------------------------------
def lora_step(**network: object) -> tuple[TrainStep, Trained]:
    """Adapters in two blocks (graphs of random masks take seconds to compile), with ups that are not zero."""
    model = toy_model(Device(PROFILES["CPU"]))
    options = {"network_dim": 4, "network_alpha": 4.0, "network_dropout": None, "network_args": {}} | network
    targets = [target for target in ToyFamily().targets(toy_weights(1)) if target.stage == "mid"]
    made = lora.create_network(targets, **options, generator_of=lambda name: np.random.default_rng(len(name)))
    for name, tensor in made.tensors.items():
        if name.endswith("lora_up.weight"):
            made.tensors[name] = np.random.default_rng(len(name)).standard_normal(tensor.shape).astype(np.float32)
    trained = trained_adapters(made, blocks_of(model), lambda name: ONE_RATE)
    return make_step(model, trained, block_keys=dropout_keys(trained, RunRng(3))), trained


def loss_at(step: TrainStep, index: int) -> float:
    """Of the same numbers as a batch of another number in the run."""
    inputs = GIVEN[0].inputs(SPEC)
    return step.gradients(type(inputs)(inputs.predict, inputs.target_BCHW, inputs.weights_B1HW, index))[0]


@pytest.mark.parametrize(
    "network",
    [
        {"network_dropout": 0.5},
        {"network_args": {"rank_dropout": "0.5"}},
        {"network_args": {"module_dropout": "0.5"}},
    ],
    ids=["values", "ranks", "modules"],
)
def test_dropout_masks_are_of_the_batch(network: dict) -> None:
    """Others in each batch, and the same whenever the same batch is computed."""
    step, _ = lora_step(**network)
    losses = [loss_at(step, index) for index in range(8)]
    assert losses == [loss_at(step, index) for index in range(8)]
    assert len(set(losses)) > 4
    plain, _ = lora_step()
    assert loss_at(plain, 0) == loss_at(plain, 1)


def test_each_block_has_a_key_of_its_own_in_each_batch() -> None:
    _, trained = lora_step(network_dropout=0.5)
    keys_of = dropout_keys(trained, RunRng(3))
    assert keys_of is not None
    keys = [int(key.asnumpy()) for index in range(5) for key in keys_of(index).values()]
    assert len(keys) == 5 * len(trained.blocks)
    assert len(set(keys)) == len(keys)
    assert keys == [int(key.asnumpy()) for index in range(5) for key in keys_of(index).values()]
    other = dropout_keys(trained, RunRng(4))
    assert other is not None
    assert keys[0] != int(next(iter(other(0).values())).asnumpy()), "and of its own in each run"


def test_without_a_dropout_no_keys_are_made() -> None:
    assert dropout_keys(lora_step()[1], RunRng(3)) is None


@pytest.mark.parametrize("keep", [0.0, 0.5, 1.0])
def test_computing_blocks_again_sees_the_same_masks(keep: float) -> None:
    step, trained = lora_step(network_dropout=0.5)
    make = partial(make_step, toy_model(Device(PROFILES["CPU"])), trained)
    kept = make(block_keys=dropout_keys(trained, RunRng(3)), keep=keep).gradients(GIVEN[0].inputs(SPEC))
    again = step.gradients(GIVEN[0].inputs(SPEC))
    assert kept[0] == pytest.approx(again[0], rel=1e-6)
    for name, gradient in again[2].items():
        np.testing.assert_allclose(kept[2][name], gradient, rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_rate_of_the_schedule_reaches_every_group() -> None:
    """Twice the factor, twice the way."""
    ways = []
    for factor in (0.1, 0.2):
        step = denoiser_step(Device(PROFILES["CPU"]))
        before = copied(step.trained)
        go(step, GIVEN[0], factor)
        ways.append(changes(before, step.trained))
    for once, twice in pairwise(ways):
        for name, change in once.items():
            np.testing.assert_allclose(twice[name], 2 * change, rtol=2e-3, atol=5e-7, err_msg=name)
