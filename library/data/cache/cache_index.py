"""What is known of a folder's images and cache files, so that they need not be opened to find out.

The index is a hint: what it says of a file counts only while the file's size and both of its times are those it has
noted (the time of its entry tells two files that were exchanged). It may be deleted, damaged or overwritten by another
process at any time; then files are opened again.
"""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path

from library.files.user_cache import FileState, file_state, is_settled
from library.files.whole_file import write_whole_bytes

INDEX_NAME = ".cache_index.json"
VERSION = 2


def file_digest(path: Path) -> str:
    """BLAKE2b of a file's bytes, 32 hex digits. Raises ValueError when it cannot be read."""
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error


class FolderIndex:
    """Digests of a folder's images, and which entries of its cache files were found good. For use by many threads."""

    def __init__(self, folder: Path) -> None:
        """Read the folder's index, or begin an empty one."""
        self._path = folder / INDEX_NAME
        self._lock = threading.Lock()
        self._changed = False
        self._images, self._entries = _read(self._path)

    def image_digest(self, image: Path) -> str:
        """`file_digest` of an image, without opening it where the index knows it."""
        state = _state(image)
        known = self._images.get(image.name)
        if state is not None and known is not None and known[0] == state:
            return known[1]
        digest = file_digest(image)
        if state is not None and is_settled(state):
            with self._lock:
                self._images[image.name] = (state, digest)
                self._changed = True
        return digest

    def good_entries(self, file: Path) -> Mapping[str, str]:
        """Entries of a cache file that were found good and what they were made from, if it is still the same file."""
        state = _state(file)
        known = self._entries.get(file.name)
        return known[1] if state is not None and known is not None and known[0] == state else {}

    def note_good(self, file: Path, entry: str, made_from: str) -> None:
        """Note that an entry was found good; `made_from` is a digest of what it was made from."""
        state = _state(file)
        if state is None:
            return
        with self._lock:
            known = self._entries.get(file.name)
            others = known[1] if known is not None and known[0] == state else {}
            self._entries[file.name] = (state, {**others, entry: made_from})
            self._changed = True

    def save(self) -> None:
        """Write the index, together with what other processes have written since; files that are gone are left out.

        A folder that cannot be written to has no index: it only saves time.
        """
        with self._lock:
            if not self._changed:
                return
            images, entries = _read(self._path)
            self._images, self._entries = {**images, **self._images}, {**entries, **self._entries}
            with contextlib.suppress(ValueError, OSError):
                there = set(os.listdir(self._path.parent))
                table: dict[str, object] = {"version": VERSION}
                for kind, known in (("images", self._images), ("entries", self._entries)):
                    table[kind] = {name: [*state, what] for name, (state, what) in known.items() if name in there}
                text = json.dumps(table, sort_keys=True, separators=(",", ":")).encode("ascii")
                write_whole_bytes(self._path, text)
                self._changed = False


def _state(path: Path) -> FileState | None:
    """None when the file is not there."""
    try:
        return file_state(path)
    except OSError:
        return None


def _read(path: Path) -> tuple[dict[str, tuple[FileState, str]], dict[str, tuple[FileState, dict[str, str]]]]:
    """Images and entries; nothing at all where the file is not what `save` writes."""
    try:
        table = json.loads(path.read_bytes())
        if table["version"] != VERSION:
            return {}, {}
        images = {name: (_numbers(state), str(digest)) for name, (*state, digest) in table["images"].items()}
        entries = {
            name: (_numbers(state), {str(entry): str(made) for entry, made in good.items()})
            for name, (*state, good) in table["entries"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}, {}
    return images, entries


def _numbers(state: list[int]) -> FileState:
    size, changed, entered = state
    return int(size), int(changed), int(entered)
