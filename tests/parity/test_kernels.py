"""Every layer is its formula and has its slopes, in whichever way a device or a size makes it be computed."""

import inspect
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from mindspore import ops

from library.device.profile import CPU, DeviceProfile
from library.graphs import kernels, operations
from library.graphs.graph_code import GraphFunction
from library.graphs.random import keep_mask, key_tensor, uniform
from library.graphs.values import Trace, Value
from tests.parity.formulas import Case, arrays_of, assert_close, patches, value_and_slopes
from tests.parity.traced import PROFILES, value_and_gradients

pytestmark = pytest.mark.usefixtures("device")

TOLERANCE = 5e-6
"""Relative to the largest value, or to 1: the normalisations' gradients are differences of sums of 50 products."""
SAME_NUMBERS = 2e-6
"""Relative to the largest value, or to 1: the same float32 numbers, summed in another order."""
HEAD = 4


# --- formulas ---------------------------------------------------------------------------------------------------------
def normalised(x: np.ndarray, eps: float) -> np.ndarray:
    """Each row less its mean, over its deviation."""
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)


def group_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    y = normalised(x.reshape(x.shape[0], 2, -1), 1e-5).reshape(x.shape)
    return y * weight.reshape(-1, 1, 1) + bias.reshape(-1, 1, 1)


def convolution(x: np.ndarray, w: np.ndarray, bias: np.ndarray, stride: int, padding: int) -> np.ndarray:
    return np.einsum("bcijhw,ocij->bohw", patches(x, w.shape[2], stride, padding), w) + bias.reshape(-1, 1, 1)


def normal_cdf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(lambda number: 0.5 * (1 + math.erf(number / math.sqrt(2))))(x)


def heads(rows: np.ndarray, batch: int) -> np.ndarray:
    return rows.reshape(batch, -1, rows.shape[1] // HEAD, HEAD).transpose(0, 2, 1, 3)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> np.ndarray:
    q, k, v = (heads(rows, 2) for rows in (q, k, v))
    scores = np.exp(q @ k.swapaxes(-1, -2) / math.sqrt(HEAD))
    if causal:
        scores = np.tril(scores)
    out = scores / scores.sum(-1, keepdims=True) @ v
    return out.transpose(0, 2, 1, 3).reshape(-1, out.shape[1] * HEAD)


# --- cases ------------------------------------------------------------------------------------------------------------
def convolution_case(kernel: int, stride: int, padding: int) -> Case:
    return Case(
        lambda x, w, b: kernels.conv2d(x, w, b, stride, padding),
        lambda x, w, b: convolution(x, w, b, stride, padding),
        ((2, 3, 6, 4), (5, 3, kernel, kernel), (5,)),
    )


def attention_case(count: int, causal: bool, tokens: int, text: int) -> Case:
    width = count * HEAD
    return Case(
        lambda q, k, v: kernels.attention(q, k, v, 2, HEAD, causal),
        lambda q, k, v: attention(q, k, v, causal),
        ((2 * tokens, width), (2 * text, width), (2 * text, width)),
    )


CASES: dict[str, Case] = {
    "dense": Case(kernels.dense, lambda x, w: x @ w.T, ((4, 6), (5, 6))),
    "dense with a bias": Case(kernels.dense, lambda x, w, b: x @ w.T + b, ((4, 6), (5, 6), (5,))),
    "dense, transposed": Case(
        lambda x, w, b: kernels.dense(x, w, b, transposed=True), lambda x, w, b: x @ w + b, ((4, 6), (6, 5), (5,))
    ),
    "conv2d": convolution_case(3, 1, 1),
    "conv2d with strides": convolution_case(3, 2, 1),
    "conv2d without padding": convolution_case(3, 1, 0),
    "conv2d of pixels": convolution_case(1, 1, 0),
    "group_norm": Case(
        lambda x, w, b: kernels.group_norm(x, w, b, 2, 1e-5), group_norm, ((2, 6, 3, 2), (6,), (6,))
    ),
    "layer_norm": Case(
        kernels.layer_norm, lambda x, w, b: normalised(x, 1e-5) * w + b, ((4, 6), (6,), (6,))
    ),
    "row_moments": Case(
        kernels.row_moments, lambda x: np.stack([x.mean(-1), x.var(-1)], -1), ((4, 6),)
    ),
    "scale_channels": Case(
        kernels.scale_channels,
        lambda x, scale, shift: x * scale.reshape(2, 3, 1, 1) + shift.reshape(2, 3, 1, 1),
        ((2, 3, 2, 2), (6,), (6,)),
    ),
    "gelu": Case(kernels.gelu, lambda x: x * normal_cdf(x), ((4, 6),)),
    "gated_gelu": Case(kernels.gated_gelu, lambda x: x[:, :3] * x[:, 3:] * normal_cdf(x[:, 3:]), ((4, 6),)),
    "quick_gelu": Case(kernels.quick_gelu, lambda x: x / (1 + np.exp(-1.702 * x)), ((4, 6),)),
    "attention of one head": attention_case(1, False, 5, 3),
    "attention of heads": attention_case(3, False, 5, 3),
    "attention to earlier tokens": attention_case(2, True, 4, 4),
    "add_to_channels": Case(
        kernels.add_to_channels, lambda x, shift: x + shift[:, :, None, None], ((2, 3, 2, 2), (2, 3))
    ),
    "upsample_nearest_2x": Case(
        kernels.upsample_nearest_2x, lambda x: x.repeat(2, axis=2).repeat(2, axis=3), ((2, 3, 2, 3),)
    ),
}  # fmt: skip


@pytest.mark.parametrize("device", PROFILES)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_formula(name: str, device: str) -> None:
    case = CASES[name]
    arrays = arrays_of(case)
    found = value_and_gradients(case.operation, arrays, profile=PROFILES[device])
    assert_close(found, value_and_slopes(case, arrays), TOLERANCE)


def test_every_layer_has_a_case() -> None:
    functions = {name for name, thing in vars(kernels).items() if inspect.isfunction(thing)}
    layers = {name for name in functions if not name.startswith("_")} - {"with_gradient", "full"}
    assert not layers - {word for name in CASES for word in name.replace(",", "").split()}


# --- ways that sizes choose -------------------------------------------------------------------------------------------
def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape, dtype=np.float32)


def test_attention_by_chunks_is_attention_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def layer(q: Value, k: Value, v: Value) -> Value:
        return kernels.attention(q, k, v, 2, 64)

    inputs = tuple(random(2 * 16, 128) for _ in range(3))
    at_once = value_and_gradients(layer, inputs)
    monkeypatch.setattr(kernels, "MIN_QUERIES", 4)
    in_chunks = value_and_gradients(layer, inputs, profile=replace(CPU, max_scores=300))  # of 2 * 2 * 16 * 16: four
    assert_close(in_chunks, at_once, SAME_NUMBERS)


@pytest.mark.parametrize(("batch", "stride", "padding"), [(1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 1, 0)])
@pytest.mark.parametrize("turn_from", [0, 100])
def test_own_convolution_gradients_are_mindspores(
    batch: int, stride: int, padding: int, turn_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of both ways: by a convolution with turned weights (from so few pixels on), and by columns."""

    def layer(x: Value, weight: Value) -> Value:
        return kernels.conv2d(x, weight, None, stride, padding)

    inputs = random(batch, 6, 8, 4), random(5, 6, 3, 3)[:, ::-1].copy()
    monkeypatch.setattr(kernels, "TURN_FROM", turn_from)
    monkeypatch.setattr(kernels, "MAX_KEPT_COLUMNS", 0)
    monkeypatch.setattr(kernels, "MAX_COLUMNS", 6 * 9 * 8 * 4 // stride**2 // 2)  # two or three channels at a time
    profiles = [replace(CPU, own_conv_gradient=own) for own in (True, False)]
    own, mindspores = (value_and_gradients(layer, inputs, profile=profile) for profile in profiles)
    assert_close(own, mindspores, SAME_NUMBERS)


# --- random masks -----------------------------------------------------------------------------------------------------
def mixed(x: np.ndarray) -> np.ndarray:
    """The finaliser of ``random.py``'s source, on unsigned numbers that wrap around."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def uniform_formula(rows: int, columns: int, key: int, salt: int) -> np.ndarray:
    start = mixed(np.array([key + salt & 0xFFFFFFFF], np.uint32))
    row = mixed((start + np.arange(rows, dtype=np.uint32)) * np.uint32(0x9E3779B9))
    column = (start + np.arange(columns, dtype=np.uint32)) * np.uint32(0x7FEB352D)
    return (mixed(row[:, None] + column[None]) & np.uint32(0xFFFFFF)).astype(np.float32) / np.float32(1 << 24)


def drawn(make: Callable[[Value], Value], key: int, profile: DeviceProfile, compiled: bool) -> np.ndarray:
    trace = Trace(profile)
    key_value = trace.input((), key_tensor(0).dtype)
    function = GraphFunction(trace, (key_value,), (make(key_value),), compiled)
    return function((key_tensor(key),))[0].asnumpy()  # type: ignore[no-any-return]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("device", PROFILES)
def test_masks_are_the_hash_of_key_and_place(device: str, compiled: bool) -> None:
    """Exactly, on every device: they are integers."""
    for key, salt in ((0, 0), (0xDEADBEEF, 3), (2**31 - 1, 7)):
        expected = uniform_formula(5, 7, key, salt)
        numbers = drawn(lambda value, salt=salt: uniform(5, 7, value, salt), key, PROFILES[device], compiled)
        assert np.array_equal(numbers, expected)
        mask = drawn(lambda value, salt=salt: keep_mask(5, 7, 0.2, value, salt), key, PROFILES[device], compiled)
        assert np.array_equal(mask, (expected >= np.float32(0.2)) * np.float32(1.25))


# --- fused attention --------------------------------------------------------------------------------------------------
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
