"""Which core each of MindSpore's threads runs on, on a CPU.

MindSpore has a worker thread for each core: the first runs graphs, the others help it with kernels. In a graph of at
most 100 kernels the calling thread starts the kernels instead of the first worker, and waits for both in a loop of
``sched_yield``, which the system takes for work. Left alone, it often gives the waiting thread a core of its own and
has two workers share another, for seconds on end: every kernel then takes twice as long. So each worker gets a core of
its own. The caller shares one of them: the first worker's where it starts kernels itself, since that worker sleeps
between kernels while the others look out for the next one without a break; else the last worker's, since the first one
is busy (docs/log/performance.md).
"""

import functools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from library.device.profile import DeviceProfile

STARTED_BY_CALLER = 100
"""Up to so many kernels of a graph are started by the calling thread (MindSpore 2.7)."""
_TASKS = Path("/proc/self/task")
_WORKER_NAMES = ("ActorThread_", "KernelThread_")


@dataclass(frozen=True)
class _Seats:
    """Cores for the calling thread."""

    starting: int
    """While it starts kernels itself."""
    waiting: int
    """While it waits for a graph."""


class _Caller(threading.local):
    """Where the calling thread is, while it is placed."""

    seats: _Seats | None = None
    core = -1

    def move(self, core: int) -> None:
        if core != self.core:
            with suppress(OSError):  # the system took the core away meanwhile; a wrong place costs time only
                os.sched_setaffinity(0, {core})
                self.core = core


_caller = _Caller()


@contextmanager
def settled(profile: DeviceProfile) -> Iterator[None]:
    """While the body runs, MindSpore's workers have a core each, and the calling thread shares one of theirs.

    Afterwards the caller is as free as before; the workers stay where they are. Threads that the body starts would stay
    on the caller's core. Does nothing on devices without it, before MindSpore has workers (the first graph), with
    fewer cores than workers, on systems other than Linux, where the system refuses it, and inside itself.
    """
    seats = _place(_worker_threads()) if profile.place_threads and _caller.seats is None else None
    if seats is None:
        yield
        return
    before = os.sched_getaffinity(0)
    _caller.seats = seats
    _caller.move(seats.waiting)
    try:
        yield
    finally:
        _caller.seats, _caller.core = None, -1
        os.sched_setaffinity(0, before)


def sit_for(kernels: int) -> None:
    """Take the calling thread to where it disturbs a graph of so many kernels least; only while it is ``settled``."""
    if _caller.seats is not None:
        starts = kernels <= STARTED_BY_CALLER
        _caller.move(_caller.seats.starting if starts else _caller.seats.waiting)


def _worker_threads() -> tuple[int, ...]:
    """Numbers of MindSpore's worker threads: those that run graphs, then those that help with kernels."""
    named = []
    for task in _TASKS.iterdir() if _TASKS.is_dir() else ():
        with suppress(OSError):  # a thread that has ended meanwhile
            named.append((task.joinpath("comm").read_text(), int(task.name)))
    return tuple(number for name, number in sorted(named) if name.startswith(_WORKER_NAMES))


@functools.cache
def _place(workers: tuple[int, ...]) -> _Seats | None:
    """Give each worker a core, once; returns the caller's. None where there is nothing to place, or no permission."""
    cores = sorted(os.sched_getaffinity(0)) if workers else []
    if len(workers) < 2 or len(cores) < len(workers):
        return None
    try:
        for worker, core in zip(workers, cores, strict=False):
            os.sched_setaffinity(worker, {core})
    except OSError:
        return None
    return _Seats(starting=cores[0], waiting=cores[len(workers) - 1])
