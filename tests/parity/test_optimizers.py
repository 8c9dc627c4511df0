"""The flat optimizer against AdamW's formula, in one piece and in several."""

import numpy as np
import pytest
from mindspore import Tensor

from library.training import optimizers
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


@pytest.mark.parametrize("chunk", [SIZE, 7, 1])
@pytest.mark.parametrize("lr", [1e-2, np.linspace(0, 1e-1, SIZE, dtype=np.float32)], ids=["one rate", "many rates"])
def test_pieces_of_any_length_give_the_formulas_result(
    chunk: int, lr: np.ndarray | float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizers, "CHUNK", chunk)
    rng = np.random.default_rng(3)
    first = rng.standard_normal(SIZE).astype(np.float32)
    grads = [rng.standard_normal(SIZE).astype(np.float32) for _ in range(STEPS)]
    optimizer = FlatOptimizer(RULE, SIZE, lr, compiled=False)
    theta = Tensor(first)
    for grad in grads:
        theta, norm = optimizer.step(theta, Tensor(grad), lr_factor=0.5)
        assert norm is None
    np.testing.assert_allclose(theta.asnumpy(), by_formula(np.asarray(lr), first, grads), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_a_gradient_is_scaled_and_clipped_as_if_beforehand(max_norm: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "CHUNK", 7)
    rng = np.random.default_rng(3)
    first = rng.standard_normal(SIZE).astype(np.float32)
    grads = [rng.standard_normal(SIZE).astype(np.float32) for _ in range(STEPS)]
    optimizer = FlatOptimizer(RULE, SIZE, 1e-2, compiled=False)
    theta, clipped = Tensor(first), []
    for grad in grads:
        theta, norm = optimizer.step(theta, Tensor(grad), lr_factor=0.5, grad_scale=0.25, max_norm=max_norm)
        expected = np.linalg.norm(0.25 * grad.astype(np.float64))
        assert norm == pytest.approx(expected, rel=1e-6)
        clipped.append(0.25 * grad * min(1.0, max_norm / expected))
    np.testing.assert_allclose(theta.asnumpy(), by_formula(np.asarray(1e-2), first, clipped), rtol=2e-5, atol=1e-6)
