"""Filling a cache: one batch is encoded while the next is decoded and the one before is written."""

import logging
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from library.data.cache.cache_store import Item, Store
from library.data.loader import AHEAD, ordered_map
from library.settings.counted import counted

logger = logging.getLogger(__name__)

NAMED = 5
"""Files named in a line; of the rest the number is told."""
ROUNDS = 3
"""Times that a cache is looked through: another process may have put its own entries over ours."""
SAVE_SECONDS = 30
"""Time between two savings of the index, which spare a continued run opening files."""
WRITERS = 4

Entry = TypeVar("Entry")
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Filling(Generic[Item, Loaded, Entry]):
    """How a cache's entries are made."""

    what: str
    """For messages: latents."""
    load: Callable[[Item], Loaded]
    """Reads what is to be encoded; called in threads."""
    encode: Callable[[Sequence[Loaded]], Sequence[Entry]]
    """Encodes a batch; called in the thread that fills."""
    group: Callable[[Item], Hashable]
    """Only items of the same group come into one batch."""
    batch_size: int
    workers: int
    """Threads that load."""
    start: int = 0
    """Number of the batch to begin with; different ones let several processes share the work."""
    progress: Callable[[int, int], None] = lambda done, total: None
    """Called with the number of items done, and of all to be made."""


def fill(items: Sequence[Item], store: Store[Item, Entry], filling: Filling[Item, Loaded, Entry]) -> int:
    """Make the entries that are missing or not good, and say what was found; returns the number made.

    What was made stays when this is interrupted. Raises ValueError when something cannot be read, encoded or written,
    or when entries disappear while they are made.
    """
    made = 0
    for number in range(ROUNDS):
        found = store.missing(items)
        if number == 0:
            _say(filling.what, len(items), len(found.items), found.refused)
        if not found.items:
            break
        try:
            made += _make(found.items, store, filling)
        finally:
            store.save()
    else:
        raise ValueError(
            f"{filling.what}: {counted(len(found.items), 'cache file was', 'cache files were')} changed by another "
            f"program while being made, the first is {found.items[0].file}; see what else is writing there, and "
            "start again"
        )
    store.save()
    return made


def _make(items: Sequence[Item], store: Store[Item, Entry], filling: Filling[Item, Loaded, Entry]) -> int:
    """Load, encode and write. Items that another process has done by now are passed over."""

    def load(batch: list[Item]) -> list[tuple[Item, Loaded]]:
        return [(item, filling.load(item)) for item in batch if not store.holds(item)]

    batches = _batches(items, filling)
    done = made = 0
    saved = time.monotonic()
    pending: deque[Future[None]] = deque()
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="cache") as writers:
        for batch, loaded in zip(batches, ordered_map(load, batches, filling.workers), strict=True):
            if loaded:
                entries = filling.encode([what for _, what in loaded])
                for (item, _), entry in zip(loaded, entries, strict=True):
                    item.check(entry)
                    pending.append(writers.submit(store.put, item, entry))
            while len(pending) > WRITERS * AHEAD:
                pending.popleft().result()
            done, made = done + len(batch), made + len(loaded)
            filling.progress(done, len(items))
            if time.monotonic() - saved > SAVE_SECONDS:
                store.save()
                saved = time.monotonic()
        for future in pending:
            future.result()
    return made


def _batches(items: Sequence[Item], filling: Filling[Item, Loaded, Entry]) -> list[list[Item]]:
    """The items by group, in the order in which groups first appear, from the start-th batch on and around."""
    groups: dict[Hashable, list[Item]] = {}
    for item in items:
        groups.setdefault(filling.group(item), []).append(item)
    size = filling.batch_size
    batches = [group[first : first + size] for group in groups.values() for first in range(0, len(group), size)]
    first = filling.start % len(batches)
    return batches[first:] + batches[:first]


def _say(what: str, total: int, missing: int, refused: Sequence[str]) -> None:
    again = f", {len(refused)} of them again" if refused else ""
    made = counted(missing, "is made", "are made")
    logger.info("%s: %d of %d in the cache, %s now%s", what, total - missing, total, made, again)
    for reason in refused[:NAMED]:
        logger.warning("%s: not used: %s", what, reason)
    if len(refused) > NAMED:
        logger.warning("%s: %s not used", what, counted(len(refused) - NAMED, "more is", "more are"))
