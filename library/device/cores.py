"""Which core each of MindSpore's threads runs on, on a CPU.

MindSpore has a worker thread for each core. In a graph of at most 100 kernels the calling thread starts the kernels and
waits for the workers in a loop of ``sched_yield``, which the system takes for work. Left alone, it often gives the
waiting thread a core of its own and has two workers share another, for seconds on end: every kernel then takes
twice as long (docs/performance.md). So each worker gets a core of its own, and the caller that of the last one, to
which it yields.
"""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SETTLE = False
"""Whether ``settled`` does anything; set for a CPU."""
_TASKS = Path("/proc/self/task")
_WORKER_NAMES = ("ActorThread_", "KernelThread_")


@contextmanager
def settled() -> Iterator[None]:
    """While the body runs, MindSpore's workers have a core each and the calling thread shares the last one's.

    Afterwards the caller is as free as before; the workers stay where they are. Threads that the body starts would stay
    on the caller's core. Does nothing before MindSpore has workers (the first graph), with fewer cores than workers,
    and on systems other than Linux.
    """
    home = _place(_worker_threads()) if SETTLE else None
    if home is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {home})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _worker_threads() -> tuple[int, ...]:
    """Numbers of MindSpore's worker threads: those that run graphs, then those that help with kernels."""
    named = []
    for task in _TASKS.iterdir() if _TASKS.is_dir() else ():
        with suppress(OSError):  # a thread that has ended meanwhile
            named.append((task.joinpath("comm").read_text(), int(task.name)))
    return tuple(number for name, number in sorted(named) if name.startswith(_WORKER_NAMES))


@functools.cache
def _place(workers: tuple[int, ...]) -> int | None:
    """Give each worker a core, once; returns the last worker's. None where there is nothing to place."""
    cores = sorted(os.sched_getaffinity(0)) if workers else []
    if len(workers) < 2 or len(cores) < len(workers):
        return None
    for worker, core in zip(workers, cores, strict=False):
        os.sched_setaffinity(worker, {core})
    return cores[len(workers) - 1]
