"""What a replay found: one line per file and quantity, and the tolerances that decide."""

import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np

Status = Literal["ok", "FAIL", "refused", "not built", "error"]

TOLERANCES = MappingProxyType(
    {
        # Float32 sums in another order, through some 2000 layers.
        "loss[0]": 1e-5,
        "noise_pred": 1e-5,
        # Adam-like first steps move by the sign of the gradient, so the rounding of tiny gradients shows.
        "loss[1:]": 1e-3,
        "final_delta_l2": 2e-2,
        "final tensors": 2e-2,
        # Norms of small gradients are sums of numbers that nearly cancel; single elements more so.
        "grad_l2": 1e-3,
        "grad_norm": 1e-3,
        "grad tensors": 1e-2,
        "text": 1e-4,
        "vae": 1e-4,
        "size_embeddings": 1e-4,
        "schedule": 1e-5,
        # Every step of the sampler passes on and enlarges the error of the ones before.
        "sampled": 1e-3,
    }
)
"""Quantity -> largest relative error (L2 over a tensor) of a float32 replay."""

TINY_GRADIENT = 1e-6
"""A gradient whose norm is below this part of the largest one is compared relative to the largest."""


@dataclass(frozen=True)
class Finding:
    """One quantity of one recording."""

    quantity: str
    status: Status
    error: float | None = None
    """Worst relative error."""
    tolerance: float | None = None
    detail: str = ""
    """What else is to be said: where the worst is, why it was refused, what does not match."""

    def line(self, file: str) -> str:
        """One line of text."""
        what = f"{file}: {self.quantity}" if self.quantity else file
        if self.error is None:
            return f"{what}: {self.status}: {self.detail}" if self.detail else f"{what}: {self.status}"
        detail = f" ({self.detail})" if self.detail else ""
        return f"{what}: worst relative error {self.error:.2e}, tolerance {self.tolerance:.0e}: {self.status}{detail}"

    def as_json(self, file: str) -> dict[str, object]:
        """For ``--json``; a number that is not finite becomes null."""
        fields = {"file": file, **asdict(self)}
        if self.error is not None and not math.isfinite(self.error):
            fields["error"] = None
        return fields

    @property
    def holds(self) -> bool:
        """Whether this speaks for the code: a table without code says nothing against it."""
        return self.status in ("ok", "not built")


def judged(quantity: str, error: float, detail: str = "", kind: str | None = None) -> Finding:
    """A finding by the tolerance of its kind (or name); an error that is not a number fails."""
    limit = TOLERANCES[kind or quantity]
    return Finding(quantity, "ok" if error <= limit else "FAIL", error, limit, detail)


def failed(quantity: str, detail: str) -> Finding:
    """Something that has no number and does not match."""
    return Finding(quantity, "FAIL", detail=detail)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """L2 norm of the difference over that of what is expected; infinite where the shapes differ."""
    if found.shape != expected.shape:
        return math.inf
    wanted = np.asarray(expected, np.float64)
    difference = float(np.linalg.norm(np.asarray(found, np.float64) - wanted))
    norm = float(np.linalg.norm(wanted))
    return difference / norm if norm else (0.0 if difference == 0 else math.inf)


def relative_errors(found: Sequence[float], expected: Sequence[float], tiny: float = 0.0) -> np.ndarray:
    """Error of each number relative to what is expected, float64 [N].

    Expected numbers that are 0, or below ``tiny`` times the largest, are compared relative to the largest.
    """
    wanted = np.asarray(expected, np.float64)
    size = np.abs(wanted)
    largest = size.max(initial=0.0)
    scale = np.where((size > tiny * largest) & (size > 0), size, largest)
    difference = np.abs(np.asarray(found, np.float64) - wanted)
    return np.divide(difference, scale, out=np.where(difference == 0, 0.0, np.inf), where=scale > 0)


def worst_of(errors: np.ndarray, names: Sequence[str]) -> tuple[float, str]:
    """The largest error, and the name it belongs to; what is not a number counts as the largest."""
    index = int(np.argmax(np.where(np.isnan(errors), np.inf, errors)))
    return float(errors[index]), names[index]


def listed(items: Iterable[str], most: int = 4) -> str:
    """The first few items, and how many there are."""
    items = list(items)
    more = f", ... ({len(items)} in all)" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def one_line(error: Exception) -> str:
    """An error's text without line breaks."""
    return "; ".join(line.strip() for line in str(error).splitlines() if line.strip())


def missing_of(names: Iterable[str], present: Container[str]) -> list[str]:
    """Which of the names are not there."""
    return [name for name in names if name not in present]
