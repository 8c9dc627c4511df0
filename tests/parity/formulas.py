"""Operations stated a second time, in NumPy, and the slopes of these formulas.

Formulas and slopes are computed in float64. Central differences with steps of 1e-5 are right to 1e-9 there, so all of a
tolerance is left to what computes in float32.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

STEP = 1e-5
Padding = int | tuple[int, int, int, int]
Shape = tuple[int, ...]


class Case(NamedTuple):
    """An operation and its formula."""

    operation: Callable[..., Any]
    formula: Callable[..., np.ndarray]
    shapes: tuple[tuple[int, ...], ...]
    positive: bool = False
    """Whether the inputs are to be at least 0.5."""


def patches(x: np.ndarray, kernel: int, stride: int, padding: Padding) -> np.ndarray:
    """[B, C, H, W] to [B, C, k, k, H', W']: what each place of a convolution sees."""
    above, below, left, right = (padding,) * 4 if isinstance(padding, int) else padding
    x = np.pad(x, ((0, 0), (0, 0), (above, below), (left, right)))
    high, wide = ((side - kernel) // stride + 1 for side in x.shape[2:])
    out = np.empty((*x.shape[:2], kernel, kernel, high, wide), x.dtype)
    for i in range(kernel):
        for j in range(kernel):
            out[:, :, i, j] = x[:, :, i : i + stride * high : stride, j : j + stride * wide : stride]
    return out


def scattered(columns: np.ndarray, shape: Shape, kernel: int, stride: int, padding: Padding) -> np.ndarray:
    """The transpose of ``patches``, column by column."""
    batch, channels, height, width = shape
    above, below, left, right = (padding,) * 4 if isinstance(padding, int) else padding
    out = np.zeros((batch, channels, height + above + below, width + left + right), columns.dtype)
    high, wide = ((side - kernel) // stride + 1 for side in out.shape[2:])
    columns = columns.reshape(batch, channels, kernel, kernel, high, wide)
    for i in range(kernel):
        for j in range(kernel):
            out[:, :, i : i + stride * high : stride, j : j + stride * wide : stride] += columns[:, :, i, j]
    return out[:, :, above : above + height, left : left + width]


def arrays_of(case: Case) -> tuple[np.ndarray, ...]:
    """Inputs: numbers of about 1."""
    rng = np.random.default_rng(5)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in case.shapes]
    return tuple(np.abs(array) + np.float32(0.5) if case.positive else array for array in arrays)


def exact_value(case: Case, arrays: Iterable[np.ndarray]) -> np.ndarray:
    """The formula's value."""
    return np.asarray(case.formula(*(array.astype(np.float64) for array in arrays)))


def value_and_slopes(case: Case, arrays: tuple[np.ndarray, ...], wanted: int | None = None) -> list[np.ndarray]:
    """The formula's value, and its gradients along its cosine (as ``traced.value_and_gradients`` has them)."""
    value = exact_value(case, arrays)
    d_out = np.cos(value)
    exact = [array.astype(np.float64) for array in arrays]
    found = [np.empty(array.shape) for array in exact[:wanted]]
    for array, gradient in zip(exact, found, strict=False):
        for place in np.ndindex(array.shape):
            before = array[place]
            ends = []
            for moved in (before + STEP, before - STEP):
                array[place] = moved
                ends.append((case.formula(*exact) * d_out).sum())
            array[place] = before
            gradient[place] = (ends[0] - ends[1]) / (2 * STEP)
    return [value, *found]


def assert_close(found: list[np.ndarray], expected: list[np.ndarray], tolerance: float) -> None:
    """Each array within a tolerance that is relative to the largest value, or to 1."""
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1.0)
