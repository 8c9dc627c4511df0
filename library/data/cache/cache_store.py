"""Where cached entries are kept: in memory, or in .npz files beside the images."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from library.data.cache.cache_index import FolderIndex
from library.data.cache.fingerprint import MadeFrom, made_from_digest
from library.data.loader import ordered_map
from library.files.npz_files import read_npz, write_npz
from library.files.whole_file import remove_leftovers

LOCKS = 16
"""For threads that write different entries of one file; more threads than this never write."""

Entry = TypeVar("Entry")
Arrays = dict[str, np.ndarray]


class CacheItem(ABC, Generic[Entry]):
    """One thing to be cached: where it is kept, what it is made from, and how it is laid out in its file."""

    file: Path
    """The .npz; other items may have entries in it too."""
    name: str
    """Of the entry within the file, for the index: ``128x96 flipped``."""
    made_from: MadeFrom
    """Everything that the entry depends on."""
    max_bytes: int
    """More than the file of such an item ever takes."""

    @abstractmethod
    def pack(self, entry: Entry, others: Mapping[str, np.ndarray]) -> Arrays:
        """The file's arrays, by name: the entry, and those of its arrays so far (`others`) that stay."""

    @abstractmethod
    def unpack(self, arrays: Mapping[str, np.ndarray], trusting: bool) -> Entry:
        """The entry in a file's arrays.

        Raises ValueError, with the reason, when it is not there, has another shape, is not finite or, unless
        `trusting`, was made from something else.
        """

    @abstractmethod
    def check(self, entry: Entry) -> None:
        """Raise ValueError, naming the image or the caption, when a new entry is not finite."""


Item = TypeVar("Item", bound=CacheItem)


@dataclass
class Missing(Generic[Item]):
    """What has to be made, and why."""

    items: list[Item] = field(default_factory=list)
    """In the order asked for."""
    refused: list[str] = field(default_factory=list)
    """Of the files that are there and are not good: name and reason."""


class Store(ABC, Generic[Item, Entry]):
    """Keeps entries."""

    @abstractmethod
    def missing(self, items: Sequence[Item]) -> Missing[Item]:
        """Those of the items that have to be made."""

    @abstractmethod
    def holds(self, item: Item) -> bool:
        """Whether there is a good entry by now; asked right before one is made."""

    @abstractmethod
    def put(self, item: Item, entry: Entry) -> None:
        """Keep an entry. Raises ValueError when it cannot be written."""

    @abstractmethod
    def get(self, item: Item) -> Entry:
        """The entry. Raises ValueError, naming the file, when it is gone or not good any more."""

    @abstractmethod
    def save(self) -> None:
        """Write down what is known of the entries, for the next run."""


class MemoryStore(Store[Item, Entry]):
    """Entries in memory, for this run."""

    def __init__(self) -> None:
        self._entries: dict[Item, Entry] = {}

    def missing(self, items: Sequence[Item]) -> Missing[Item]:
        """See Store."""
        return Missing([item for item in items if item not in self._entries])

    def holds(self, item: Item) -> bool:
        """See Store."""
        return item in self._entries

    def put(self, item: Item, entry: Entry) -> None:
        """See Store."""
        self._entries[item] = entry

    def get(self, item: Item) -> Entry:
        """See Store."""
        return self._entries[item]

    def save(self) -> None:
        """See Store; memory has nothing to write."""


class DiskStore(Store[Item, Entry]):
    """Entries in files beside the images. May be used by many threads, and one folder by many processes.

    Files are whole or absent and hold the same whoever writes them, so processes that fill one cache together need no
    locks. Where two write different entries of one file at once, one entry may be lost: it is found missing, and made.
    """

    def __init__(self, indexes: "Indexes", *, trusting: bool = False) -> None:
        """`trusting`: take what is there and has the right shape (--skip_cache_check)."""
        self._indexes = indexes
        self._trusting = trusting
        self._locks = tuple(threading.Lock() for _ in range(LOCKS))

    def missing(self, items: Sequence[Item]) -> Missing[Item]:
        """See Store. Opens only files that the index does not know, or that have changed since."""
        self._indexes.remove_leftovers()
        found: Missing[Item] = Missing()
        reasons = ordered_map(self._reason, items, self._indexes.workers)
        for item, reason in zip(items, reasons, strict=True):
            if reason is not None:
                found.items.append(item)
                if reason:
                    found.refused.append(reason)
        return found

    def holds(self, item: Item) -> bool:
        """See Store."""
        return self._reason(item) is None

    def put(self, item: Item, entry: Entry) -> None:
        """See Store."""
        with self._locks[hash(item.file) % LOCKS]:
            others: Arrays = {}
            with suppress(ValueError):
                others = read_npz(item.file, item.max_bytes)
            write_npz(item.file, item.pack(entry, others))
            self._note(item, made_from_digest(item.made_from))

    def get(self, item: Item) -> Entry:
        """See Store. Everything is checked again, whatever the index says."""
        try:
            return self._unpacked(item)
        except ValueError as error:
            raise ValueError(f"{error}; it was good when training started: start again, and it is made anew") from error

    def save(self) -> None:
        """See Store."""
        self._indexes.save()

    def _reason(self, item: Item) -> str | None:
        """None for a good entry; why it is not good; empty when there is no file."""
        good = self._indexes.of(item.file.parent).good_entries(item.file).get(item.name)
        if good is not None and (self._trusting or good == made_from_digest(item.made_from)):
            return None
        if not item.file.exists():
            return ""
        try:
            self._unpacked(item)
        except ValueError as error:
            return str(error)
        # What was taken on trust has no digest, and is looked at again by a run that does not trust.
        self._note(item, "" if self._trusting else made_from_digest(item.made_from))
        return None

    def _unpacked(self, item: Item) -> Entry:
        arrays = read_npz(item.file, item.max_bytes)
        try:
            entry: Entry = item.unpack(arrays, self._trusting)
        except ValueError as error:
            raise ValueError(f"{item.file}: {error}") from error
        return entry

    def _note(self, item: Item, made_from: str) -> None:
        self._indexes.of(item.file.parent).note_good(item.file, item.name, made_from)


class Indexes:
    """The indexes of the folders of a run."""

    def __init__(self, folders: Iterable[Path], workers: int = 0) -> None:
        """`workers`: threads that look through files."""
        self.workers = workers
        self._indexes = {folder: FolderIndex(folder) for folder in dict.fromkeys(folders)}

    def remove_leftovers(self) -> None:
        """Remove files that killed runs left half written."""
        for folder in self._indexes:
            remove_leftovers(folder)

    def of(self, folder: Path) -> FolderIndex:
        """The index of one of the folders."""
        return self._indexes[folder]

    def save(self) -> None:
        """Write all that have changed."""
        for index in self._indexes.values():
            index.save()
