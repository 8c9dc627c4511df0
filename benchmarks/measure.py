"""What every benchmark here measures with. No MindSpore."""

import json
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np

MATMUL_SIDE = 2048


def seconds_of(work: Callable[[], object], repeats: int) -> list[float]:
    """How long each of several calls took."""
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return taken


def summary(seconds: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {
        "median_s": round(statistics.median(seconds), 4),
        "min_s": round(min(seconds), 4),
        "max_s": round(max(seconds), 4),
    }


def peak_rss_gb() -> float:
    """Largest resident memory of this process so far, in 10**9 bytes."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3)


def matmul_rate(multiply: Callable[[np.ndarray, np.ndarray], Callable[[], object]], repeats: int = 7) -> float:
    """Operations per second of a large square float32 product, the best of several.

    Args:
        multiply: two matrices -> a call that multiplies them and waits for the result.
        repeats: how often.
    """
    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal((MATMUL_SIDE, MATMUL_SIDE), np.float32) for _ in range(2))
    product = multiply(a, b)
    product()
    return 2 * MATMUL_SIDE**3 / min(seconds_of(product, repeats))


def report(result: dict[str, object]) -> None:
    """A line a figure for people, then the whole as one JSON line for programs."""
    for name, value in result.items():
        print(f"{name:>24}  {value}")
    print(json.dumps(result), flush=True)
