"""What every benchmark here measures with. No MindSpore."""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.flops import unet_step_flops
from library.families.sdxl.shapes import FULL_SDXL, TINY_SDXL

SIZES = {"tiny": TINY_SDXL, "full": FULL_SDXL}
MATMUL_SIDE = 2048
WARMUP = 6
"""In their first six calls many of MindSpore's CPU kernels try with how many threads they are fastest."""


def step_parser(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark of a training step has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="tiny", help="which SDXL")
    parser.add_argument("--pixels", type=side, default=128, help="side of the square image, a multiple of 32")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rank", type=int, default=4, help="network_dim of the LoRA")
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    parser.add_argument("--warmup", type=int, default=WARMUP, help="untimed steps after the first one, which compiles")
    return parser


def side(text: str) -> int:
    """Side of an image from the command line. Raises argparse.ArgumentTypeError."""
    if not text.isdecimal() or int(text) % 32 or text == "0":
        raise argparse.ArgumentTypeError(f"{text}: give a multiple of 32")
    return int(text)


def measure_steps(
    step: Callable[[], object],
    args: argparse.Namespace,
    multiply: Callable[[np.ndarray, np.ndarray], Callable[[], object]],
) -> dict[str, float]:
    """Time a step as the options ask; the figures for ``report``.

    Args:
        step: one whole training step.
        args: options of ``step_parser``.
        multiply: see ``matmul_rate``.
    """
    first = seconds_of(step, 1)[0]
    seconds_of(step, args.warmup)
    seconds = seconds_of(step, args.steps)
    flops = unet_step_flops(SIZES[args.size], args.batch, args.pixels // 8, args.pixels // 8, args.rank)
    peak, rate = peak_rss_gb(), matmul_rate(multiply)
    per_second = flops.useful / statistics.median(seconds)
    return {
        "first_step_s": round(first, 2),
        **summary(seconds),
        "useful_tflop": round(flops.useful / 1e12, 4),
        "tflop_per_s": round(per_second / 1e12, 4),
        "matmul_tflop_per_s": round(rate / 1e12, 4),
        "share_of_matmul": round(per_second / rate, 3),
        "peak_rss_gb": peak,
    }


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


def rss_gb() -> float:
    """Resident memory of this process now, in 10**9 bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 1e9


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
