"""Making batches ahead of time in threads.

Threads and not processes: Pillow, OpenCV and NumPy release the interpreter lock while they decode and resize, nothing
has to be copied between processes, and there is no second copy of the data set. Order and content of the results do
not depend on the number of threads.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2
"""Results kept ready or in work per thread."""


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yield function(item) for every item in order, computed ahead in `workers` threads (0: here, when asked for).

    An exception in `function` is raised at its place in the order. Leaving the iterator early waits for the results
    under way and starts no others.
    """
    if workers < 1:
        yield from map(function, items)
        return
    remaining = iter(items)
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="data") as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in islice(remaining, workers * AHEAD):
                pending.append(pool.submit(function, item))
            while pending:
                result = pending.popleft().result()
                for item in islice(remaining, 1):
                    pending.append(pool.submit(function, item))
                yield result
        finally:
            for future in pending:
                future.cancel()
