"""The ways in which devices and sizes make a layer be computed differently give the same values and gradients."""

from collections.abc import Callable

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from library.device import kernels

pytestmark = pytest.mark.usefixtures("device")

TOLERANCE = 2e-6
"""Relative to the largest value: the same float32 numbers, summed in another order."""
GRAD = ops.GradOperation(get_all=True, sens_param=True)


def random(*shape: int) -> Tensor:
    return Tensor(np.random.default_rng(len(shape)).standard_normal(shape, dtype=np.float32))


def value_and_gradients(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
    """The compiled function's value, and its gradients along a fixed direction; compiled anew on each call."""

    def value(x, y, z):  # type: ignore[no-untyped-def]
        return function(x, y, z)

    def gradients(x, y, z, d):  # type: ignore[no-untyped-def]
        return GRAD(value)(x, y, z, d)

    out = ms.jit(value)(*inputs)
    return [out.asnumpy(), *(g.asnumpy() for g in ms.jit(gradients)(*inputs, ops.cos(out)))]


def assert_close(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert np.abs(a - b).max() <= TOLERANCE * max(np.abs(b).max(), 1.0)


def group_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return kernels.group_norm(x, weight, bias, 1e-5)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return kernels.attention(q, k, v, 2)


LAYERS = {
    "group_norm": (group_norm, ((2, 64, 6, 4), (64,), (64,))),
    "layer_norm": (kernels.layer_norm, ((20, 48), (48,), (48,))),
    "attention": (attention, ((2 * 16, 128), (2 * 12, 128), (2 * 12, 128))),
}


@pytest.mark.parametrize("name", LAYERS)
def test_broadcasting_by_products_is_broadcasting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, shapes = LAYERS[name]
    inputs = tuple(random(*shape) for shape in shapes)
    results = []
    for explicit in (True, False):
        monkeypatch.setattr(kernels, "EXPLICIT_BROADCAST", explicit)
        results.append(value_and_gradients(function, inputs))
    assert_close(*results)


def test_attention_by_chunks_is_attention_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = tuple(random(2 * 16, 128) for _ in range(3))
    at_once = value_and_gradients(attention, inputs)
    monkeypatch.setattr(kernels, "MAX_SCORES", 300)  # of 2 * 2 * 16 * 16: four chunks
    assert_close(value_and_gradients(attention, inputs), at_once)


def test_a_known_result_is_not_computed_and_passes_the_gradient_on() -> None:
    def function(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return kernels.known(x * y, z) * 3.0

    x, y, z = random(4, 5), random(5), random(4, 5) + 7.0
    out, d_x, _, d_z = value_and_gradients(function, (x, y, z))
    np.testing.assert_allclose(out, 3.0 * z.asnumpy(), rtol=1e-6)
    np.testing.assert_allclose(d_x, 3.0 * np.cos(out) * y.asnumpy(), rtol=1e-5, atol=1e-6)
    assert not d_z.any()
