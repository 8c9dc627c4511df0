"""Whole weights as what is trained: a linear layer held as in its file and one held turned, convolutions, a norm, and a
text encoder's table, in the toy family. Gradients are compared with central differences of the loss in NumPy.
"""

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from mindspore import Tensor

from library.device.profile import Device
from library.families.base import BaseModel, BaseWeights
from library.graphs.program import Program
from library.training.optimizers.adafactor import Adafactor
from library.training.optimizers.adamw import AdamW
from library.training.optimizers.optimizer import Optimizer
from library.training.step import TrainStep
from library.training.trained import Group, Trained, TrainedBlock, trained_adapters, trained_weights
from networks import lora
from networks.network_base import Network
from tests.parity.toy_family import DENOISER, SHAPES, WORDS, ToyFamily, toy_weights
from tests.parity.toy_steps import LR, Given, blocks_of, copied, make_step, toy_model
from tests.parity.traced import PROFILES

pytestmark = pytest.mark.usefixtures("device")

CHOSEN = (
    (DENOISER, "enter.time.weight"),
    (DENOISER, "enter.conv.weight"),
    (DENOISER, "enter.conv.bias"),
    (DENOISER, "mix.0.mlp.fc1.weight"),
    (DENOISER, "mix.1.gate.weight"),
    (DENOISER, "leave.norm.weight"),
    (DENOISER, "leave.norm.bias"),
    (WORDS, "word.embedding.weight"),
    (WORDS, "word.proj.weight"),
)
TURNED = "mix.0.mlp.fc1.weight"
"""Held as [in, out]."""
NAMES = {f"{part}.{key}" for part, key in CHOSEN}
DEVICES = [pytest.param(Device(profile), id=name) for name, profile in PROFILES.items()]
CPU = Device(PROFILES["CPU"])
ONE_RATE = Group("all", LR)
GIVEN = Given()


def is_chosen(part: str, key: str) -> bool:
    return (part, key) in CHOSEN


def is_any(part: str, key: str) -> bool:
    return True


def chosen(model: BaseModel, wanted: Callable[[str, str], bool] = is_chosen) -> Trained:
    return trained_weights(model.weights, blocks_of(model), wanted, lambda name: ONE_RATE)


def with_values(values: Mapping[str, np.ndarray]) -> BaseWeights:
    """The toy's first weights with others in the place of some."""
    weights = toy_weights(1)
    for name, value in values.items():
        part, _, key = name.partition(".")
        weights.parts[part][key] = value.copy()
    return weights


def places(given: Given, key: str, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Some of a weight's values; of the table, rows that the batch reads and one that it does not."""
    rng = np.random.default_rng(len(key))
    found = [tuple(int(rng.integers(side)) for side in shape) for _ in range(6)]
    if key == "word.embedding.weight":
        found = [(int(given.ids[0, 0]), 0), (int(given.ids[1, 2]), 3), (int(given.ids[1, 4]), 5), (51, 2)]
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("given", [GIVEN, Given(1, mixes=(0, 1, 0))], ids=["each once", "one block twice"])
def test_gradients_are_the_slopes_of_the_loss(device: Device, given: Given) -> None:
    """A block that is applied twice has one gradient, the sum of both. Tolerance: sums in float32."""
    model = toy_model(device)
    step = make_step(model, chosen(model))
    loss, _, gradients = step.gradients(given.inputs(model.spec))
    weights = toy_weights(1)
    assert loss == pytest.approx(given.numpy_loss(weights), rel=2e-6)
    assert set(gradients) == NAMES
    for part, key in CHOSEN:
        gradient = gradients[f"{part}.{key}"]
        assert gradient.shape == SHAPES[part][key]
        size = float(np.abs(gradient).max())
        assert size > 1e-5, key
        for place in places(given, key, gradient.shape):
            slope = given.numpy_slope(weights, part, key, place)
            assert gradient[place] == pytest.approx(slope, rel=1e-4, abs=1e-4 * size), (key, place)
    unread = gradients["te.word.embedding.weight"][60:]
    assert not unread.any(), "words that the batch does not have"


@pytest.mark.parametrize("device", DEVICES)
def test_the_model_computes_with_the_changed_weights_and_the_others_stay(device: Device) -> None:
    model = toy_model(device)
    frozen = {
        (part, key): tensor.asnumpy().copy()
        for part, named in model.weights.items()
        for key, tensor in named.items()
        if not is_chosen(part, key)
    }
    trained = chosen(model)
    step, before = make_step(model, trained), copied(trained)
    gradients = {name: g.copy() for name, g in step.gradients(GIVEN.inputs(model.spec))[2].items()}
    for _ in range(2):
        step(GIVEN.inputs(model.spec), 1.0)
        after = copied(trained)
        loss = step.gradients(GIVEN.inputs(model.spec))[0]
        assert loss == pytest.approx(GIVEN.numpy_loss(with_values(after)), rel=3e-6)
    assert loss < GIVEN.numpy_loss(toy_weights(1)), "descent goes down"
    assert all((after[name] != before[name]).any() for name in NAMES)
    for (part, key), array in frozen.items():
        np.testing.assert_array_equal(model.weights[part][key].asnumpy(), array)
    assert set(gradients) == set(after)


def test_values_are_changed_in_the_memory_they_have_on_a_host() -> None:
    """So that nothing is copied, and arrays that were given out show the change."""
    model = toy_model(CPU)
    trained = chosen(model)
    arrays, values = trained.named(), [tensor.value for tensor in trained.tensors]
    before = copied(trained)
    make_step(model, trained)(GIVEN.inputs(model.spec), 1.0)
    assert all((arrays[name] != before[name]).any() for name in NAMES)
    assert [tensor.value for tensor in trained.tensors] == values


@pytest.mark.parametrize("device", DEVICES)
def test_turned_weights_have_their_files_shape_outside(device: Device) -> None:
    model = toy_model(device)
    trained = chosen(model)
    (held,) = (tensor for tensor in trained.tensors if tensor.names == (f"{DENOISER}.{TURNED}",))
    assert held.is_turned
    assert held.value.shape == SHAPES[DENOISER][TURNED][::-1]
    for name, value in trained.named().items():
        part, _, key = name.partition(".")
        np.testing.assert_array_equal(value, toy_weights(1).parts[part][key])


def test_only_what_is_wanted_is_trained() -> None:
    model = toy_model(CPU)
    trained = chosen(model, lambda part, key: key == "leave.norm.bias")
    assert [tensor.names for tensor in trained.tensors] == [("denoiser.leave.norm.bias",)]
    assert trained.size == len(toy_weights(1).parts[DENOISER]["leave.norm.bias"])
    with pytest.raises(ValueError, match="nothing would be trained"):
        chosen(model, lambda part, key: key == "spare.proj.weight")


def test_groups_are_asked_by_part_and_key() -> None:
    model, asked = toy_model(CPU), []

    def group_of(name: str) -> Group:
        asked.append(name)
        return Group(name, 0.1)

    trained = trained_weights(model.weights, blocks_of(model), is_chosen, group_of)
    assert set(asked) == NAMES
    assert [group.name for group in trained.groups] == [tensor.names[0] for tensor in trained.tensors]


# --- beside adapters --------------------------------------------------------------------------------------------------
def network() -> Network:
    """Adapters beside all linear layers and convolutions, whose ups are not zero."""
    made = lora.create_network(
        ToyFamily().targets(toy_weights(1)),
        network_dim=2,
        network_alpha=1.0,
        network_dropout=None,
        network_args={"conv_dim": "2", "conv_alpha": "2"},
        generator_of=lambda name: np.random.default_rng(len(name)),
    )
    for name, tensor in made.tensors.items():
        if name.endswith("lora_up.weight"):
            made.tensors[name] = np.random.default_rng(7).normal(0, 0.3, tensor.shape).astype(np.float32)
    return made


def both(model: BaseModel, beside: Network) -> Trained:
    """Adapters and whole weights, of the same blocks."""
    weights = chosen(model)
    adapters = trained_adapters(beside, blocks_of(model), lambda name: ONE_RATE)
    nothing = TrainedBlock(())
    found = {}
    for block in blocks_of(model):
        mine, whole = adapters.blocks.get(block, nothing), weights.blocks.get(block, nothing)
        found[block] = TrainedBlock(mine.tensors + whole.tensors, mine.adapters, whole.weights)
    return Trained(found)


def test_adapters_and_weights_do_not_disturb_each_other() -> None:
    """Adapters have the gradients that they have alone; weights those that they have in a model with them merged."""
    model, beside = toy_model(CPU), network()
    merged = toy_weights(1)
    beside.merge_into(merged.parts, 1.0)
    together = make_step(model, both(model, beside)).gradients(GIVEN.inputs(model.spec))
    alone_trained = trained_adapters(network(), blocks_of(model), lambda name: ONE_RATE)
    alone = make_step(toy_model(CPU), alone_trained).gradients(GIVEN.inputs(model.spec))
    assert together[0] == pytest.approx(GIVEN.numpy_loss(merged), rel=3e-6)
    assert set(together[2]) == NAMES | set(alone[2])
    for name, gradient in alone[2].items():
        np.testing.assert_allclose(together[2][name], gradient, rtol=1e-5, atol=1e-7, err_msg=name)
    for part, key in CHOSEN:
        gradient = together[2][f"{part}.{key}"]
        for place in places(GIVEN, key, gradient.shape):
            slope = GIVEN.numpy_slope(merged, part, key, place)
            assert gradient[place] == pytest.approx(slope, rel=1e-4, abs=1e-4 * float(np.abs(gradient).max())), key


def test_an_update_of_both_reaches_both() -> None:
    model, beside = toy_model(CPU), network()
    trained = both(model, beside)
    step, before = make_step(model, trained), copied(trained)
    gradients = {name: g.copy() for name, g in step.gradients(GIVEN.inputs(model.spec))[2].items()}
    step(GIVEN.inputs(model.spec), 1.0)
    for name, value in copied(trained).items():
        np.testing.assert_allclose(value - before[name], -LR * gradients[name], rtol=2e-3, atol=3e-7, err_msg=name)


# --- updates on the way back ------------------------------------------------------------------------------------------
def steps(rule: Any, fused: bool, **options: Any) -> tuple[dict[str, np.ndarray], TrainStep]:
    """Values after three batches of all weights."""
    model = toy_model(CPU)
    trained = chosen(model, is_any)
    step = make_step(model, trained, rule, fused=fused, **options)
    for index in range(3):
        result = step(Given(index).inputs(model.spec), 0.1)
        assert (result.has_updated, result.grad_norm) == (True, None)
    return copied(trained), step


@pytest.mark.parametrize("rule", [AdamW(), Adafactor(), None], ids=["AdamW", "Adafactor", "plain"])
def test_updating_on_the_way_back_gives_the_same_values(rule: Any) -> None:
    """To the bit: the same gradients, the same rule; nothing is clipped."""
    (after, _), (on_the_way, _) = steps(rule, False), steps(rule, True)
    for name, value in after.items():
        np.testing.assert_array_equal(on_the_way[name], value, err_msg=name)


def test_on_the_way_back_each_tensor_is_clipped_by_its_own_norm() -> None:
    model = toy_model(CPU)
    trained = chosen(model)
    limit = 0.3
    step, before = make_step(model, trained, fused=True, max_grad_norm=limit), copied(trained)
    gradients = {name: g.copy() for name, g in step.gradients(GIVEN.inputs(model.spec))[2].items()}
    assert step(GIVEN.inputs(model.spec), 1.0).grad_norm is None
    norms = {name: float(np.linalg.norm(gradient)) for name, gradient in gradients.items()}
    assert min(norms.values()) < limit < max(norms.values()), "some are clipped, some are not"
    for name, value in copied(trained).items():
        expected = -LR * gradients[name] * min(1.0, limit / norms[name])
        np.testing.assert_allclose(value - before[name], expected, rtol=2e-3, atol=2e-7, err_msg=name)


def test_updating_on_the_way_back_never_holds_the_gradients_of_two_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted whenever a block's gradients are about to be computed, and at each update."""
    alive: list[tuple[int, weakref.ref[Tensor]]] = []
    counted: list[set[int]] = []
    real_gradients, real_update = Program.gradients, Optimizer.update

    def blocks_alive() -> set[int]:
        return {number for number, tensor in alive if tensor() is not None}

    def gradients(self: Program, *arguments: Any) -> tuple[Tensor, ...]:
        counted.append(blocks_alive())
        found = real_gradients(self, *arguments)
        trained = len(self._stacks) + len(self._kind.trained)
        number = len(counted)
        alive.extend((number, weakref.ref(tensor)) for tensor in found[len(found) - trained :] if trained)
        return found

    def update(self: Optimizer, *arguments: Any) -> None:
        assert len(blocks_alive()) == 1
        real_update(self, *arguments)

    monkeypatch.setattr(Program, "gradients", gradients)
    monkeypatch.setattr(Optimizer, "update", update)
    model = toy_model(CPU)
    step = make_step(model, chosen(model, is_any), AdamW(), fused=True)
    step(GIVEN.inputs(model.spec), 1.0)
    assert len(counted) == len(blocks_of(model)) + 1, "the loss is a block too"
    assert counted == [set()] * len(counted)
    assert blocks_alive() == set(), "none is left"
