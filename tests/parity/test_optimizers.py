"""Optimizers: each rule against its formula in float64, on a host and on a device; norms of gradients and clipping."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from mindspore import Tensor

from library.device.profile import Device
from library.graphs.block import Block, Layers
from library.graphs.values import Value
from library.training import gradients as gradients_module
from library.training.gradients import GradientSum
from library.training.optimizers import optimizer as optimizer_module
from library.training.optimizers.adafactor import Adafactor
from library.training.optimizers.adamw import AdamW
from library.training.optimizers.lion import Lion
from library.training.optimizers.optimizer import Optimizer
from library.training.optimizers.rule import Rule, all_rules, make_rule, state_bytes
from library.training.step import StepInputs, TrainStep
from library.training.trained import Group, Trained, TrainedTensor, trained_weights
from tests.parity.traced import PROFILES

STEPS, LR_FACTOR = 4, 0.5
Update = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(value, gradient) of one tensor in float64 -> new value; remembers what it needs."""

pytestmark = pytest.mark.usefixtures("device")
each_way = pytest.mark.parametrize("way", PROFILES)


# --- the formulas, for one tensor ------------------------------------------------------------------------------------
def adamw(rule: AdamW, lr: float, decay: float) -> Update:
    """Loshchilov and Hutter 2019, algorithm 2."""
    m, v, t = 0.0, 0.0, 0

    def update(value: np.ndarray, grad: np.ndarray) -> np.ndarray:
        nonlocal m, v, t
        (beta1, beta2), t = rule.betas, t + 1
        m, v = beta1 * m + (1 - beta1) * grad, beta2 * v + (1 - beta2) * grad**2
        direction = (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + rule.eps)
        return value - lr * (direction + decay * value)

    return update


def lion(rule: Lion, lr: float, decay: float) -> Update:
    """Chen and others 2023, algorithm 2."""
    m = 0.0

    def update(value: np.ndarray, grad: np.ndarray) -> np.ndarray:
        nonlocal m
        beta1, beta2 = rule.betas
        direction = np.sign(beta1 * m + (1 - beta1) * grad)
        m = beta2 * m + (1 - beta2) * grad
        return value - lr * (direction + decay * value)

    return update


def adafactor(rule: Adafactor, lr: float, decay: float) -> Update:
    """Shazeer and Stern 2018, algorithms 4 and 5 with sections 7 and 8; the rows' and columns' moments are sums."""
    t, moments, first = 0, [0.0, 0.0], 0.0

    def update(value: np.ndarray, grad: np.ndarray) -> np.ndarray:
        nonlocal t, moments, first
        t += 1
        beta2, squares = 1 - t**rule.decay_rate, grad**2 + rule.eps[0]
        axes = ((-1,), (-2,)) if value.ndim > 1 else ((), ())
        sums = [squares.sum(axis, keepdims=True) if axis else squares for axis in axes]
        moments = [beta2 * old + (1 - beta2) * new for old, new in zip(moments, sums, strict=True)]
        row, column = moments
        second = row * column / row.sum(-2, keepdims=True) if value.ndim > 1 else row
        direction = grad / np.sqrt(second)
        direction = direction / max(1.0, rms(direction) / rule.clip_threshold)
        bound = 1e-6 * t if rule.warmup_init else 1e-2
        rate = min(bound, 1 / math.sqrt(t)) if rule.relative_step or rule.warmup_init else lr
        rate = rate * max(rule.eps[1], rms(value)) if rule.scale_parameter else rate
        change = rate * direction
        if rule.beta1 is not None:
            first = change = rule.beta1 * first + (1 - rule.beta1) * change
        return value - rate * decay * value - change

    return update


def rms(x: np.ndarray) -> float:
    return float(np.sqrt((x**2).mean()))


FORMULAS: dict[type, Callable[[Any, float, float], Update]] = {AdamW: adamw, Lion: lion, Adafactor: adafactor}
RULES: dict[str, Rule] = {
    "AdamW": AdamW(betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1),
    "Lion": Lion(betas=(0.8, 0.95), weight_decay=0.1),
    "Adafactor": Adafactor(weight_decay=0.1),
    "Adafactor, given rate": Adafactor(relative_step=False, scale_parameter=False, clip_threshold=0.5, decay_rate=-0.5),
    "Adafactor, warmup": Adafactor(warmup_init=True, eps=(1e-30, 0.5)),
    "Adafactor, first moment": Adafactor(beta1=0.7, eps=(1e-4, 1e-3)),
}


def test_every_rule_has_a_formula_here() -> None:
    assert set(all_rules().values()) == set(FORMULAS) == {type(rule) for rule in RULES.values()}


# --- tensors ---------------------------------------------------------------------------------------------------------
def tensors_and_gradients() -> tuple[list[TrainedTensor], list[list[np.ndarray]]]:
    """Trained tensors of three groups: a vector, a stack of three matrices, a convolution's weight, a turned matrix."""
    rng = np.random.default_rng(3)
    kinds = (
        (1, (11,), Group("a", 1e-2), False),
        (3, (4, 6), Group("b", 1e-1), False),
        (1, (5, 3, 3, 3), Group("c", 1e-3, weight_decay=0.0), False),
        (1, (6, 9), Group("b", 1e-1), True),
    )
    tensors, gradients = [], []
    for i, (count, shape, group, is_turned) in enumerate(kinds):
        arrays = [rng.standard_normal(shape).astype(np.float32) for _ in range(count)]
        names = tuple(f"{i}.{j}" for j in range(count))
        tensors.append(TrainedTensor(names, group, arrays, is_turned))
        whole = tensors[-1].array.shape
        gradients.append([rng.standard_normal(whole).astype(np.float32) for _ in range(STEPS)])
    return tensors, gradients


def by_formula(rule: Rule, tensor: TrainedTensor, grads: Sequence[np.ndarray]) -> np.ndarray:
    """Where a tensor should be after some gradients."""
    stacked = tensor.stacked_shape(tensor.shape)
    decay = rule.weight_decay if tensor.group.weight_decay is None else tensor.group.weight_decay  # type: ignore[attr-defined]
    parts = []
    for i, start in enumerate(tensor.array.reshape(stacked)):
        value, update = start.astype(np.float64), FORMULAS[type(rule)](rule, tensor.group.lr * LR_FACTOR, decay)
        for grad in grads:
            value = update(value, grad.reshape(stacked)[i].astype(np.float64))
        parts.append(value)
    return np.concatenate(parts).reshape(tensor.array.shape)


@each_way
@pytest.mark.parametrize("name", RULES)
def test_updates_are_the_formulas(name: str, way: str) -> None:
    """Each tensor of a stack by itself, with its group's rate and decay."""
    rule, (tensors, gradients) = RULES[name], tensors_and_gradients()
    expected = [by_formula(rule, tensor, grads) for tensor, grads in zip(tensors, gradients, strict=True)]
    optimizer = Optimizer(rule, tensors, Device(PROFILES[way]))
    for step in range(STEPS):
        optimizer.begin_step()
        for tensor, grads in zip(tensors, gradients, strict=True):
            optimizer.update(tensor, Tensor(grads[step].copy()), LR_FACTOR)
    for tensor, wanted in zip(tensors, expected, strict=True):
        # A few roundings of float32 in each of four steps, of values about 1.
        np.testing.assert_allclose(tensor.value.asnumpy(), wanted, rtol=2e-6, atol=1e-6)


@each_way
def test_a_gradient_is_scaled_as_if_beforehand(way: str) -> None:
    rule, (tensors, gradients) = RULES["AdamW"], tensors_and_gradients()
    tensor, grads = tensors[1], gradients[1]
    expected = by_formula(rule, tensor, [0.25 * grad for grad in grads])
    optimizer = Optimizer(rule, tensors, Device(PROFILES[way]))
    for grad in grads:
        optimizer.begin_step()
        optimizer.update(tensor, Tensor(grad.copy()), LR_FACTOR, grad_scale=0.25)
    np.testing.assert_allclose(tensor.value.asnumpy(), expected, rtol=2e-6, atol=1e-6)


@each_way
def test_the_usual_betas_are_not_rounded_away(way: str) -> None:
    """1 - 0.999 in float32 is 5e-5 off, and so would every step be."""
    tensor = TrainedTensor(("x",), Group("a", 1e-3), [np.zeros(3, np.float32)], False)
    optimizer = Optimizer(AdamW(weight_decay=0.0), [tensor], Device(PROFILES[way]))
    optimizer.begin_step()
    optimizer.update(tensor, Tensor(np.full(3, 0.5, np.float32)), lr_factor=1.0)
    np.testing.assert_allclose(tensor.value.asnumpy(), -1e-3, rtol=1e-6)


@pytest.mark.parametrize("name", ["AdamW", "Lion"])
def test_a_host_updates_in_pieces_and_in_place(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The values are the network's own arrays, which whoever saves them reads."""
    monkeypatch.setattr(optimizer_module, "_CHUNK", 7)
    rule, (tensors, gradients) = RULES[name], tensors_and_gradients()
    tensor, grads = tensors[2], gradients[2]
    expected, seen = by_formula(rule, tensor, grads), tensor.named(tensor.array)["2.0"]
    optimizer = Optimizer(rule, tensors, Device(PROFILES["CPU"]))
    for grad in grads:
        optimizer.begin_step()
        optimizer.update(tensor, Tensor(grad.copy()), LR_FACTOR)
    np.testing.assert_allclose(seen, expected, rtol=2e-6, atol=1e-6)
    np.testing.assert_array_equal(tensor.value.asnumpy(), seen)


# --- what --optimizer_args may be -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("AdamW", {"betas": (0.9, 1.0)}, "betas"),
        ("AdamW", {"betas": 0.9}, "betas"),
        ("AdamW", {"eps": -1.0, "weight_decay": -0.1}, "eps=-1.0: must not be negative; weight_decay"),
        ("AdamW", {"beta": 1}, "--optimizer_args beta: not an argument of AdamW, which has betas, eps, weight_decay"),
        ("Lion", {"betas": (0.9,)}, "betas"),
        ("Adafactor", {"eps": (1e-30,)}, "eps"),
        ("Adafactor", {"beta1": 1.0}, "beta1"),
        ("Adafactor", {"decay_rate": 0.8}, "decay_rate"),
        ("Adagrad", {}, "--optimizer_type Adagrad: not built yet; use Adafactor, AdamW"),
    ],
)
def test_wrong_settings_are_named(name: str, args: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError) as error:
        make_rule(name, args)
    assert said in str(error.value)


def test_names_are_kohyas() -> None:
    assert make_rule("", {}) == make_rule("adamw", {}) == AdamW()
    assert make_rule("ADAFACTOR", {"relative_step": False}) == Adafactor(relative_step=False)


def test_bytes_of_the_state() -> None:
    """float32: AdamW has two values for each, Lion one, Adafactor a row and a column."""
    assert [state_bytes(rule, (20, 30)) for rule in (AdamW(), Lion(), Adafactor())] == [4800, 2400, 200]


# --- norms and clipping ----------------------------------------------------------------------------------------------
@each_way
def test_gradients_are_added_up_and_their_norm_is_of_all(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients_module, "_CHUNK", 7)
    tensors, gradients = tensors_and_gradients()
    total = GradientSum(PROFILES[way])
    for batch in range(2):
        for tensor, grads in zip(tensors, gradients, strict=True):
            total.add(tensor, Tensor(grads[batch].copy()))
    expected = [grads[0].astype(np.float64) + grads[1] for grads in gradients]
    assert total.norm() == pytest.approx(math.sqrt(sum((x**2).sum() for x in expected)), rel=1e-6)
    taken = total.take()
    assert list(taken) == tensors and total.take() == {}
    for found, wanted in zip(taken.values(), expected, strict=True):
        np.testing.assert_allclose(found.asnumpy(), wanted, rtol=1e-6, atol=1e-6)


def two_layers(x: Value, layers: Layers) -> Value:
    return layers.linear(layers.linear(x, "first"), "second")


def small_step(way: str, max_norm: float, **options: Any) -> tuple[TrainStep, Trained, StepInputs]:
    """Two linear layers whose weights are trained: one big gradient, one small."""
    rng = np.random.default_rng(6)
    shapes = {"first.bias": (5,), "first.weight": (5, 3), "second.bias": (2,), "second.weight": (2, 5)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    block, device = Block("unet", two_layers, "", tuple(shapes)), Device(PROFILES[way])
    weights = {"unet": {name: Tensor(array) for name, array in arrays.items()}}
    trained = trained_weights(weights, [block], lambda part, key: key.endswith("weight"), lambda name: Group(name, 1.0))
    optimizer = Optimizer(PLAIN, trained.tensors, device)
    step = TrainStep(weights, [block], trained, optimizer, device, max_grad_norm=max_norm, **options)
    x, target = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 3), (4, 2)))
    return step, trained, StepInputs(lambda apply: apply(block, Tensor(x)), target, np.ones((4, 1), np.float32), 0)


class _Plain:
    """Gradient descent, so that a change is the gradient."""

    elementwise = True

    def describe(self) -> str:
        return "plain"

    def state_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return {}

    def numbers(self, now: Any) -> dict[str, float]:
        return {"lr": now.lr}

    def update(self, maths: Any, value: Any, grad: Any, state: Any, n: Any) -> tuple[Any, dict[str, Any]]:
        return value - grad * n["lr"], {}


PLAIN = _Plain()


def changes_and_gradients(
    step: TrainStep, trained: Trained, inputs: StepInputs, batches: int = 1
) -> tuple[Iterator[np.ndarray], list[np.ndarray], float | None]:
    """What a step took off each tensor, the gradients of its batch, and the norm that it told."""
    _, _, gradients = step.gradients(inputs)
    before = {name: array.copy() for name, array in trained.named().items()}
    results = [step(inputs, lr_factor=1.0) for _ in range(batches)]
    assert [result.has_updated for result in results] == [False] * (batches - 1) + [True]
    after = trained.named()
    return (before[name] - after[name] for name in before), [gradients[name] for name in before], results[-1].grad_norm


def norm_of(arrays: Sequence[np.ndarray]) -> float:
    return math.sqrt(sum((array.astype(np.float64) ** 2).sum() for array in arrays))


@each_way
@pytest.mark.parametrize(("max_norm", "batches"), [(0.5, 1), (100.0, 1), (0.5, 3), (0.0, 2)])
def test_a_step_is_clipped_by_the_norm_of_all_gradients(way: str, max_norm: float, batches: int) -> None:
    """Batches of one step are averaged, whatever their number."""
    step, trained, inputs = small_step(way, max_norm, accumulation_steps=batches)
    changes, gradients, told = changes_and_gradients(step, trained, inputs, batches)
    norm = norm_of(gradients)
    assert 0.5 < norm < 100
    assert told == (pytest.approx(norm, rel=1e-5) if max_norm else None)
    factor = min(1.0, max_norm / norm) if max_norm else 1.0
    for change, gradient in zip(changes, gradients, strict=True):
        np.testing.assert_allclose(change, factor * gradient, rtol=1e-5, atol=1e-6)


@each_way
def test_a_fused_update_is_clipped_by_each_gradients_own_norm(way: str) -> None:
    step, trained, inputs = small_step(way, 0.5, fused=True)
    changes, gradients, told = changes_and_gradients(step, trained, inputs)
    assert told is None and min(norm_of([gradient]) for gradient in gradients) > 0.5
    for change in changes:
        assert norm_of([change]) == pytest.approx(0.5, rel=1e-4)


def test_the_last_batch_of_an_epoch_updates_and_is_scaled_as_a_whole_step() -> None:
    """kohya divides by the number of accumulation steps whether they all came or not."""
    step, trained, inputs = small_step("CPU", 0.0, accumulation_steps=4)
    _, _, gradients = step.gradients(inputs)
    before = {name: array.copy() for name, array in trained.named().items()}
    assert step(inputs, 1.0, ends_epoch=True).has_updated
    for name, array in trained.named().items():
        np.testing.assert_allclose(before[name] - array, gradients[name] / 4, rtol=1e-5, atol=1e-6)


def test_a_loss_that_is_no_number_changes_nothing() -> None:
    step, trained, inputs = small_step("CPU", 1.0)
    before = {name: array.copy() for name, array in trained.named().items()}
    inputs.target_BCHW[0, 0] = np.nan
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        step(inputs, 1.0)
    for name, array in trained.named().items():
        np.testing.assert_array_equal(array, before[name])
