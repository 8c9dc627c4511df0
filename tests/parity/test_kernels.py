"""The ways in which devices and sizes make a layer be computed differently give the same values and gradients."""

import numpy as np
import pytest
from mindspore import ops

from library.graphs import kernels, operations
from library.graphs.values import Value
from tests.parity.traced import gradients, value, value_and_gradients

pytestmark = pytest.mark.usefixtures("device")

TOLERANCE = 2e-6
"""Relative to the largest value: the same float32 numbers, summed in another order."""


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape, dtype=np.float32)


def assert_close(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert np.abs(a - b).max() <= TOLERANCE * max(np.abs(b).max(), 1.0)


def group_norm(x: Value, weight: Value, bias: Value) -> Value:
    return kernels.group_norm(x, weight, bias, 1e-5)


def attention(q: Value, k: Value, v: Value) -> Value:
    return kernels.attention(q, k, v, 2)


LAYERS = {
    "group_norm": (group_norm, ((2, 64, 6, 4), (64,), (64,)), 1),
    "layer_norm": (kernels.layer_norm, ((20, 48), (48,), (48,)), 1),
    "attention": (attention, ((2 * 16, 128), (2 * 12, 128), (2 * 12, 128)), 3),
}


@pytest.mark.parametrize("name", LAYERS)
def test_broadcasting_by_products_is_broadcasting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, shapes, trained = LAYERS[name]
    inputs = tuple(random(*shape) for shape in shapes)
    results = []
    for explicit in (True, False):
        monkeypatch.setattr(kernels, "EXPLICIT_BROADCAST", explicit)
        results.append(value_and_gradients(function, inputs, trained))
    assert_close(*results)


def test_attention_by_chunks_is_attention_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = tuple(random(2 * 16, 128) for _ in range(3))
    at_once = value_and_gradients(attention, inputs)
    monkeypatch.setattr(kernels, "MAX_SCORES", 300)  # of 2 * 2 * 16 * 16: four chunks
    monkeypatch.setattr(kernels, "MIN_QUERIES", 4)
    assert_close(value_and_gradients(attention, inputs), at_once)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_layer_of_few_rows_is_a_layer(transposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def layer(rows: Value, weight: Value, bias: Value) -> Value:
        return kernels.dense(rows, weight, bias, transposed)

    inputs = random(5, 24), random(24, 40) if transposed else random(40, 24), random(40)
    monkeypatch.setattr(kernels, "LARGE_WEIGHT", 24 * 40)
    results = []
    for few in (4, 5):
        monkeypatch.setattr(kernels, "FEW_ROWS", few)
        results.append([value(layer, inputs), *gradients(layer, inputs, random(5, 40))])
    assert_close(*results)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (1, 1, 0)])
def test_an_unfolded_convolution_is_a_convolution(
    kernel: int, stride: int, padding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convolution(x: Value, weight: Value) -> Value:
        return kernels.conv2d(x, weight, None, stride, padding)

    inputs = random(2, 6, 8, 4), random(5, 6, kernel, kernel)[:, ::-1].copy()
    monkeypatch.setattr(kernels, "UNFOLD_CONV", False)
    plain = value_and_gradients(convolution, inputs)
    monkeypatch.setattr(kernels, "UNFOLD_CONV", True)
    for a, b in zip(value_and_gradients(convolution, inputs), plain, strict=True):
        assert np.abs(a - b).max() <= 5 * TOLERANCE * np.abs(b).max()  # sums of up to 60 products


@pytest.mark.parametrize(("batch", "stride", "padding"), [(1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 1, 0)])
@pytest.mark.parametrize("turn_from", [0, 100])
def test_own_convolution_gradients_are_mindspores(
    batch: int, stride: int, padding: int, turn_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of both ways: by a convolution with turned weights (from so few pixels on), and by columns."""

    def convolution(x: Value, weight: Value) -> Value:
        return kernels.conv2d(x, weight, None, stride, padding)

    inputs = random(batch, 6, 8, 4), random(5, 6, 3, 3)[:, ::-1].copy()
    monkeypatch.setattr(kernels, "TURN_FROM", turn_from)
    monkeypatch.setattr(kernels, "MAX_KEPT_COLUMNS", 0)
    monkeypatch.setattr(kernels, "MAX_COLUMNS", 6 * 9 * 8 * 4 // stride**2 // 2)  # two or three channels at a time
    results = []
    for own in (True, False):
        monkeypatch.setattr(kernels, "OWN_CONV_GRADIENT", own)
        results.append(value_and_gradients(convolution, inputs))
    assert_close(*results)


@pytest.mark.parametrize("heads", [1, 3])
def test_gathering_heads_is_a_transposition(heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = tuple(random(2 * 8, 64 * heads) for _ in range(3))
    results = []
    for gathered in (True, False):
        monkeypatch.setattr(kernels, "GATHER_HEADS", gathered)
        results.append(value_and_gradients(attention, inputs))
    assert_close(*results)


def test_fused_attention_gets_its_gradient_from_mindspore(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused kernel exists on Ascend only; here a stand-in that can be differentiated takes its place."""
    monkeypatch.setattr(ops, "flash_attention_score", stand_in)
    operations._flash.cache_clear()

    def fused(q: Value, k: Value, v: Value) -> Value:
        return operations.flash_attention(q, k, v, 2, 0.5)

    q, k, v = (random(2, 3, 4) + i for i in range(3))
    out, d_q, d_k, d_v = value_and_gradients(fused, (q, k, v))
    operations._flash.cache_clear()
    np.testing.assert_allclose(out, q * k * 0.5 + v * 2, rtol=1e-6)
    d = np.cos(out)
    for found, expected in ((d_q, d * k * 0.5), (d_k, d * q * 0.5), (d_v, d * 2)):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def stand_in(query, key, value, heads, scalar_value, input_layout):  # type: ignore[no-untyped-def]  # compiled
    return query * key * scalar_value + value * heads
