"""Which core each of MindSpore's threads runs on, on a CPU.

MindSpore has a worker thread for each core: the first runs graphs, the others help it with kernels. The calling thread
waits for them in a loop of ``sched_yield``, which the system takes for work. Left alone, it often gives the waiting
thread a core of its own and has two workers share another, for seconds on end: every kernel then takes twice as long.
So each worker gets a core of its own, and the caller shares that of the last one, since the first is the busiest. What
it gains is in docs/log/performance.md.
"""

import functools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from library.device.profile import DeviceProfile

_TASKS = Path("/proc/self/task")
_WORKER_NAMES = ("ActorThread_", "KernelThread_")


class _Caller(threading.local):
    """Of the calling thread."""

    is_placed = False


_caller = _Caller()


@contextmanager
def settled(profile: DeviceProfile) -> Iterator[None]:
    """While the body runs, MindSpore's workers have a core each, and the calling thread shares one of theirs.

    Afterwards the caller is as free as before; the workers stay where they are. Threads that the body starts would stay
    on the caller's core. Does nothing on devices without it, before MindSpore has workers (the first graph), with
    fewer cores than workers, on systems other than Linux, where the system refuses it, and inside itself.
    """
    core = _place(_worker_threads()) if profile.place_threads and not _caller.is_placed else None
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    with suppress(OSError):  # the system took the core away meanwhile; a wrong place costs time only
        os.sched_setaffinity(0, {core})
    _caller.is_placed = True
    try:
        yield
    finally:
        _caller.is_placed = False
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
    """Give each worker a core, once; returns the caller's. None where there is nothing to place, or no permission."""
    cores = sorted(os.sched_getaffinity(0)) if workers else []
    if len(workers) < 2 or len(cores) < len(workers):
        return None
    try:
        for worker, core in zip(workers, cores, strict=False):
            os.sched_setaffinity(worker, {core})
    except OSError:
        return None
    return cores[len(workers) - 1]
