"""Update rules against the original's recorded runs, and against their formulas one tensor at a time."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from mindspore import Tensor

from library.device.profile import CPU, Device
from library.files.safetensors_utils import SafetensorsFile
from library.settings.key_values import parse_key_values
from library.training.optimizers import optimizer as optimizer_module
from library.training.optimizers.adafactor import Adafactor
from library.training.optimizers.adamw import AdamW
from library.training.optimizers.lion import Lion
from library.training.optimizers.optimizer import Optimizer
from library.training.optimizers.rule import Rule, all_rules, make_rule, state_bytes
from library.training.trained import Group, TrainedTensor
from tests.conftest import GOLDEN
from tests.parity.traced import PROFILES

pytestmark = pytest.mark.usefixtures("device")

with SafetensorsFile(GOLDEN / "families" / "optimizers.safetensors") as file:
    RECORDED = {key: file.read(key) for key in file}
    CASES: Mapping[str, Mapping[str, Any]] = json.loads(file.metadata["cases"])
NAMES = ("matrix", "vector", "conv")
"""The recorded parameters; with several groups each is one, in this order."""
SHOWN = (1, 2, 5, 10, 40)
"""Steps after which values are recorded."""
DEVICES = [pytest.param(Device(profile), id=name) for name, profile in PROFILES.items()]


def arguments_of(case: Mapping[str, Any]) -> dict[str, Any]:
    return parse_key_values(tuple(case["optimizer_args"]), flag="--optimizer_args")


def rule_of(case: Mapping[str, Any]) -> Rule | None:
    """The case's rule, or None where it is refused."""
    try:
        return make_rule(
            case["optimizer_type"], parse_key_values(tuple(case["optimizer_args"]), flag="--optimizer_args")
        )
    except ValueError:
        return None


BUILT = {name: rule for name, case in CASES.items() if (rule := rule_of(case)) is not None}


def test_what_is_built_is_compared_and_the_rest_is_refused_by_name() -> None:
    known = {name.lower() for name in all_rules()}
    assert {"adamw", "adafactor", "lion"} <= known
    for name, case in CASES.items():
        if name in BUILT:
            continue
        why = "not an argument of" if case["optimizer_type"].lower() in known else "not built yet"
        with pytest.raises(ValueError, match=why):
            make_rule(case["optimizer_type"], arguments_of(case))
    assert {name.split("_")[0] for name in BUILT} >= {"adamw", "adafactor", "lion"}
    assert len([name for name in BUILT if name.startswith(("adamw", "adafactor", "lion"))]) >= 18


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", BUILT)
def test_recorded_runs_of_the_original(name: str, device: Device) -> None:
    """Forty steps with given gradients. Tolerance: float32 and float64 runs of the original differ by the recorded
    share of the largest change; ten times that, and 1e-5, for another order of the same operations."""
    case = CASES[name]
    rates = RECORDED[f"{name}.lr"]
    base = case["group_lrs"] or [case["learning_rate"]]
    used = case["only"] or NAMES
    groups = {each: NAMES.index(each) if case["group_lrs"] else 0 for each in used}
    tensors = {
        each: TrainedTensor((each,), Group(each, base[groups[each]]), [RECORDED[f"init.{each}"].copy()], False)
        for each in used
    }
    optimizer, seen = Optimizer(BUILT[name], tuple(tensors.values()), device), {each: [] for each in used}
    for step in range(40):
        optimizer.begin_step()
        for each, tensor in tensors.items():
            group = groups[each]
            gradient = Tensor(RECORDED[f"grads.{each}"][step].copy())
            optimizer.update(tensor, gradient, float(rates[step, group]) / base[group])
            if step + 1 in SHOWN:
                seen[each].append(tensor.value.asnumpy().copy())
    for each in used:
        expected = RECORDED[f"{name}.{each}"]
        largest = np.abs(expected - RECORDED[f"init.{each}"]).max()
        error = np.abs(np.stack(seen[each]) - expected).max() / largest
        assert error < 10 * case["float64_difference"] + 1e-5, (each, error)


# --- one tensor at a time, in float64 ---------------------------------------------------------------------------------
Update = Callable[[np.ndarray, np.ndarray, int, float, dict[str, Any]], np.ndarray]
"""(value, gradient, step from 1, learning rate, what is remembered, empty at first) -> value."""


def adamw(value: np.ndarray, grad: np.ndarray, step: int, lr: float, kept: dict[str, Any]) -> np.ndarray:
    """Loshchilov and Hutter 2019, algorithm 2."""
    m = kept["m"] = 0.9 * kept.get("m", 0.0) + 0.1 * grad
    v = kept["v"] = 0.999 * kept.get("v", 0.0) + 0.001 * grad**2
    direction = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    return value - lr * (direction + 0.01 * value)


def lion(value: np.ndarray, grad: np.ndarray, step: int, lr: float, kept: dict[str, Any]) -> np.ndarray:
    """Chen and others 2023, algorithm 2, with a decay of 0.1."""
    m = kept.get("m", np.zeros_like(value))
    kept["m"] = 0.99 * m + 0.01 * grad
    return value - lr * (np.sign(0.9 * m + 0.1 * grad) + 0.1 * value)


def adafactor(value: np.ndarray, grad: np.ndarray, step: int, lr: float, kept: dict[str, Any]) -> np.ndarray:
    """Shazeer and Stern 2018, algorithms 4 and 5, with a decay of 0.1 and a first moment of 0.5; the rate is given."""
    beta2, squares = 1 - step**-0.8, grad**2 + 1e-30
    if value.ndim < 2:
        v = kept["v"] = beta2 * kept.get("v", 0.0) + (1 - beta2) * squares
    else:
        row = kept["row"] = beta2 * kept.get("row", 0.0) + (1 - beta2) * squares.mean(-1)
        column = kept["column"] = beta2 * kept.get("column", 0.0) + (1 - beta2) * squares.mean(-2)
        v = row[..., :, None] * column[..., None, :] / row.mean(-1)[..., None, None]
    direction = grad / np.sqrt(v)
    direction = direction / max(1.0, np.sqrt(np.mean(direction**2)))
    lr = lr * max(1e-3, float(np.sqrt(np.mean(value**2))))
    first = kept["first"] = 0.5 * kept.get("first", 0.0) + 0.5 * lr * direction
    return value - lr * 0.1 * value - first


RULES: Mapping[str, tuple[Rule, Update]] = {
    "AdamW": (AdamW(), adamw),
    "Lion": (Lion(weight_decay=0.1), lion),
    "Adafactor": (Adafactor(relative_step=False, beta1=0.5, weight_decay=0.1), adafactor),
}
SHAPES = {"matrix": (6, 5), "wide": (2, 40), "vector": (7,), "convolution": (4, 3, 3, 3), "pointwise": (4, 3, 1, 1)}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", RULES)
def test_each_tensor_of_a_stack_is_updated_as_if_alone(kind: str, shape: tuple[int, ...], device: Device) -> None:
    """Tensors of a stack differ a hundredfold in size, and their gradients too; so their means must not be shared.
    Tolerance: float32 against float64, relative to the change of each, and six roundings of the values."""
    rule, update = RULES[kind]
    rng = np.random.default_rng(4)
    sizes = (0.03, 1.0, 3.0)
    first = [(size * rng.standard_normal(shape)).astype(np.float32) for size in sizes]
    stacked = TrainedTensor(("a", "b", "c"), Group("all", 0.02), first, False)
    optimizer = Optimizer(rule, (stacked,), device)
    values, kept = [x.astype(np.float64) for x in first], [{}, {}, {}]
    for step in range(1, 7):
        grads = [(rng.standard_normal(shape) * 10.0**i).astype(np.float32) for i in (-1, 0, 1)]
        optimizer.begin_step()
        optimizer.update(stacked, Tensor(np.concatenate(grads)), lr_factor=1.0 / step)
        for i, grad in enumerate(grads):
            values[i] = update(values[i], grad.astype(np.float64), step, 0.02 / step, kept[i])
    found = stacked.named(stacked.value.asnumpy())
    for name, before, value in zip("abc", first, values, strict=True):
        largest, rounding = np.abs(value - before).max(), 6 * 2.0**-24 * np.abs(before).max()
        np.testing.assert_allclose(found[name], value, rtol=0, atol=2e-5 * largest + rounding, err_msg=name)
        assert largest > 1e-4 * np.abs(before).max()


@pytest.mark.parametrize("kind", ["AdamW", "Lion"])
def test_large_tensors_are_cut_and_come_out_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules by element take a tensor in chunks; the last is short."""
    rng, found = np.random.default_rng(4), []
    first = rng.standard_normal((3, 23)).astype(np.float32)
    grads = [rng.standard_normal((3, 23)).astype(np.float32) for _ in range(3)]
    for chunk in (1 << 14, 7):
        monkeypatch.setattr(optimizer_module, "_CHUNK", chunk)
        tensor = TrainedTensor(("a",), Group("all", 0.02), [first.copy()], False)
        optimizer = Optimizer(RULES[kind][0], (tensor,), Device(CPU))
        for grad in grads:
            optimizer.begin_step()
            optimizer.update(tensor, Tensor(grad.copy()), 1.0, 0.5)
        found.append(tensor.array.copy())
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", RULES)
def test_a_gradients_scale_is_as_if_beforehand(kind: str, device: Device) -> None:
    """Accumulation and clipping are one factor. A power of two, so that nothing is rounded."""
    rng, found = np.random.default_rng(4), []
    first = rng.standard_normal((4, 5)).astype(np.float32)
    grads = [rng.standard_normal((4, 5)).astype(np.float32) for _ in range(3)]
    for scale in (1.0, 0.25):
        tensor = TrainedTensor(("a",), Group("all", 0.02), [first.copy()], False)
        optimizer = Optimizer(RULES[kind][0], (tensor,), device)
        for grad in grads:
            optimizer.begin_step()
            optimizer.update(tensor, Tensor((grad / scale).astype(np.float32)), 1.0, scale)
        found.append(tensor.value.asnumpy().copy())
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_tensors_of_one_shape_have_states_of_their_own() -> None:
    """Two tensors alike, one with gradients and one that is left in peace until the end."""
    grads = [np.random.default_rng(i).standard_normal((3, 2)).astype(np.float32) for i in range(4)]
    for device in (Device(profile) for profile in PROFILES.values()):
        for rule, _ in RULES.values():
            alone, busy, late = (
                TrainedTensor((name,), Group("all", 0.1), [np.ones((3, 2), np.float32)], False) for name in "abc"
            )
            apart, together = Optimizer(rule, (alone,), device), Optimizer(rule, (busy, late), device)
            for i, grad in enumerate(grads):
                apart.begin_step()
                together.begin_step()
                together.update(busy, Tensor(grad.copy()), 1.0)
                if i == 3:
                    apart.update(alone, Tensor(grad.copy()), 1.0)
                    together.update(late, Tensor(grad.copy()), 1.0)
            np.testing.assert_array_equal(late.value.asnumpy(), alone.value.asnumpy())
            assert (busy.value.asnumpy() != late.value.asnumpy()).all()


def test_a_groups_own_decay_takes_the_place_of_the_rules() -> None:
    """With a gradient of zero all that moves is the decay, lr * decay of the value, which is 1."""
    for rule, _ in RULES.values():
        for device in (Device(profile) for profile in PROFILES.values()):
            tensor = TrainedTensor(("a",), Group("all", 0.1, weight_decay=0.5), [np.ones((3, 2), np.float32)], False)
            optimizer = Optimizer(rule, (tensor,), device)
            optimizer.begin_step()
            optimizer.update(tensor, Tensor(np.zeros((3, 2), np.float32)), 1.0)
            np.testing.assert_allclose(tensor.value.asnumpy(), 1 - 0.1 * 0.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("rule", "shape", "values"),
    [
        (AdamW(), (6, 5), 60),
        (Lion(), (6, 5), 30),
        (Adafactor(), (6, 5), 11),
        (Adafactor(), (7,), 7),
        (Adafactor(), (4, 3, 3, 3), 4 * 3 * 6),
        (Adafactor(beta1=0.9), (6, 5), 41),
    ],
)
def test_how_much_is_remembered(rule: Rule, shape: tuple[int, ...], values: int) -> None:
    assert state_bytes(rule, shape) == 4 * values


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("AdamW", {"betas": (0.9, 1.0)}, "betas"),
        ("AdamW", {"eps": -1.0}, "eps"),
        ("AdamW", {"weight_decay": -1.0}, "weight_decay"),
        ("Lion", {"betas": (0.9,)}, "betas"),
        ("Adafactor", {"clip_threshold": 0.0, "decay_rate": 0.5}, "clip_threshold.*decay_rate"),
        ("Adafactor", {"beta1": 1.0}, "beta1"),
        ("AdamW", {"momentum": 0.9}, "momentum: not an argument of AdamW, which has betas, eps, weight_decay"),
        ("Adam9", {}, "--optimizer_type Adam9: not built yet; use .*AdamW"),
    ],
)
def test_settings_that_cannot_be_are_refused(name: str, arguments: Mapping[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_rule(name, arguments)


def test_capitals_of_an_optimizers_name_do_not_matter_and_none_is_adamw() -> None:
    assert make_rule("adafactor", {}) == make_rule("AdaFactor", {}) == Adafactor()
    assert make_rule("", {"eps": 1e-6}) == AdamW(eps=1e-6)
