"""Which core each thread gets while a step runs."""

import os
import threading
from collections.abc import Iterator

import pytest

from library.device import cores
from library.device.profile import ASCEND, CPU

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs Linux and two cores"
)


@pytest.fixture(name="workers")
def two_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """Two idle threads in the place of MindSpore's."""
    done, ready = threading.Event(), threading.Barrier(3)

    def idle() -> None:
        ready.wait()
        done.wait()

    threads = [threading.Thread(target=idle) for _ in range(2)]
    for thread in threads:
        thread.start()
    ready.wait()
    first, second = (thread.native_id or 0 for thread in threads)
    monkeypatch.setattr(cores, "_worker_threads", lambda: (first, second))
    cores._place.cache_clear()
    yield first, second
    done.set()
    for thread in threads:
        thread.join()
    cores._place.cache_clear()


def test_workers_have_a_core_each_and_the_caller_shares_the_last_ones(workers: tuple[int, int]) -> None:
    before = os.sched_getaffinity(0)
    with cores.settled(CPU):
        first, second = (os.sched_getaffinity(worker) for worker in workers)
        assert len(first) == len(second) == 1
        assert first != second
        assert os.sched_getaffinity(0) == second
    assert os.sched_getaffinity(0) == before


@pytest.mark.usefixtures("workers")
def test_inside_itself_nothing_is_placed() -> None:
    before = os.sched_getaffinity(0)
    with cores.settled(CPU):
        placed = os.sched_getaffinity(0)
        with cores.settled(CPU):
            assert os.sched_getaffinity(0) == placed
        assert os.sched_getaffinity(0) == placed
    assert os.sched_getaffinity(0) == before != placed


def test_a_device_that_does_not_ask_for_it_is_left_alone(workers: tuple[int, int]) -> None:
    before = [os.sched_getaffinity(thread) for thread in (0, *workers)]
    with cores.settled(ASCEND):
        assert [os.sched_getaffinity(thread) for thread in (0, *workers)] == before


@pytest.mark.usefixtures("workers")
def test_the_caller_is_free_again_after_an_error() -> None:
    before = os.sched_getaffinity(0)

    @cores.settled(CPU)
    def fail() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert os.sched_getaffinity(0) == before


def test_with_fewer_cores_than_workers_nothing_is_placed(
    workers: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    core = min(os.sched_getaffinity(0))
    before = os.sched_getaffinity(workers[0])
    monkeypatch.setattr(os, "sched_getaffinity", lambda thread: {core})
    with cores.settled(CPU):
        pass
    monkeypatch.undo()
    assert os.sched_getaffinity(workers[0]) == before


def test_without_workers_nothing_is_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "_worker_threads", tuple)
    before = os.sched_getaffinity(0)
    with cores.settled(CPU):
        assert os.sched_getaffinity(0) == before


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize("refused", ["a worker's move", "the caller's moves"])
def test_a_system_that_refuses_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    allow = os.sched_setaffinity
    before = os.sched_getaffinity(0)

    def refuse(thread: int, mask: set[int]) -> None:
        if (thread == 0) == (refused == "the caller's moves") and mask != before:
            raise PermissionError
        allow(thread, mask)

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    with cores.settled(CPU):
        assert os.sched_getaffinity(0) == before
    monkeypatch.undo()
    assert os.sched_getaffinity(0) == before
