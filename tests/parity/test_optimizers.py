"""The flat optimizer against AdamW's formula, with one learning rate and with several."""

import numpy as np
import pytest
from mindspore import Tensor

from library.device import vectors
from library.training.optimizers import AdamW, FlatOptimizer

SIZE, STEPS = 23, 4
RULE = AdamW(betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)

pytestmark = pytest.mark.usefixtures("device")


def by_formula(lr: np.ndarray, theta: np.ndarray, grads: list[np.ndarray]) -> np.ndarray:
    """AdamW with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2), in float64."""
    theta, m, v = theta.astype(np.float64), np.zeros(SIZE), np.zeros(SIZE)
    beta1, beta2 = RULE.betas
    for t, grad in enumerate(grads, start=1):
        m = beta1 * m + (1 - beta1) * grad
        v = beta2 * v + (1 - beta2) * grad.astype(np.float64) ** 2
        direction = (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + RULE.eps)
        theta = theta - 0.5 * lr * (direction + RULE.weight_decay * theta)
    return theta


@pytest.mark.parametrize("runs", [[(SIZE, 1e-2)], [(7, 0.0), (6, 1e-1), (10, 1e-3)]], ids=["one rate", "many rates"])
def test_an_update_is_the_formulas(runs: list[tuple[int, float]]) -> None:
    grads, first = gradients_and_start()
    optimizer = FlatOptimizer(RULE, runs)
    thetas = [Tensor(part) for part in np.split(first, np.cumsum(optimizer.sizes)[:-1])]
    for grad in grads:
        assert optimizer.step(thetas, Tensor(grad), lr_factor=0.5) is None
    rates = np.concatenate([np.full(size, rate) for size, rate in runs])
    np.testing.assert_allclose(joined(thetas), by_formula(rates, first, grads), rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_a_gradient_is_scaled_and_clipped_as_if_beforehand(
    max_norm: float, on_host: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "ON_HOST", on_host)
    monkeypatch.setattr(vectors, "_HOST_CHUNK", 7)
    monkeypatch.setattr(vectors, "_DEVICE_CHUNK", 7)
    grads, first = gradients_and_start()
    optimizer = FlatOptimizer(RULE, [(SIZE, 1e-2)])
    thetas, clipped = [Tensor(first)], []
    for grad in grads:
        norm = optimizer.step(thetas, Tensor(grad.copy()), lr_factor=0.5, grad_scale=0.25, max_norm=max_norm)
        expected = np.linalg.norm(0.25 * grad.astype(np.float64))
        assert norm == pytest.approx(expected, rel=1e-6)
        clipped.append(0.25 * grad * min(1.0, max_norm / expected))
    np.testing.assert_allclose(joined(thetas), by_formula(np.asarray(1e-2), first, clipped), rtol=2e-6, atol=1e-6)


def test_the_usual_betas_are_not_rounded_away() -> None:
    """1 - 0.999 in float32 is 5e-5 off, and so would every step be."""
    rule, grad = AdamW(weight_decay=0.0), np.full(3, 0.5, np.float32)
    optimizer, theta = FlatOptimizer(rule, [(3, 1e-3)]), Tensor(np.zeros(3, np.float32))
    optimizer.step([theta], Tensor(grad), lr_factor=1.0)
    np.testing.assert_allclose(theta.asnumpy(), -1e-3, rtol=1e-6)


@pytest.mark.parametrize("on_host", [True, False])
def test_parts_of_a_vector_are_its_memory_on_a_host_and_outlive_it(
    on_host: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "ON_HOST", on_host)
    values = np.arange(1 << 20, dtype=np.float32)
    vector = Tensor(values.copy())
    shapes = [(7,), (3, 100), (values.size - 307,)]
    parts = vectors.parts_of(vector, shapes)
    assert (parts[1].data_ptr() == vector.data_ptr() + 4 * 7) or not on_host
    del vector
    others = [Tensor(np.full(values.size, -1.0, np.float32)) for _ in range(8)]  # would take memory that is free
    assert [part.shape for part in parts] == shapes
    assert np.array_equal(np.concatenate([part.asnumpy().ravel() for part in parts]), values)
    assert all((other.asnumpy() == -1.0).all() for other in others)


def gradients_and_start() -> tuple[list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(3)
    first = rng.standard_normal(SIZE).astype(np.float32)
    return [rng.standard_normal(SIZE).astype(np.float32) for _ in range(STEPS)], first


def joined(thetas: list[Tensor]) -> np.ndarray:
    return np.concatenate([theta.asnumpy() for theta in thetas])
