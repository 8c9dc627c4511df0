"""Which images of a folder were decoded to their end before, so that a second start need not do it again.

One small file per folder of images, in the user's cache folder and not beside the images: data sets may be read-only
and are copied around. An entry counts only while the file's size and both of its times are what they were.
"""

import hashlib
import json
import logging
import os
from pathlib import Path

from PIL import __version__ as pillow_version

from library.data.buckets import Size
from library.files.user_cache import FileState, is_settled, user_cache_folder
from library.files.whole_file import write_whole_bytes

logger = logging.getLogger(__name__)

CHECKED_BY = f"1, Pillow {pillow_version}"
"""An index that another check or another Pillow made is not used: they may find other images broken."""


def cache_folder() -> Path:
    """Where indexes are kept."""
    return user_cache_folder() / "images"


class ImageIndex:
    """The checked images of one folder: name -> state and upright size."""

    def __init__(self, folder: Path | str) -> None:
        """Read what is known about `folder`; a missing, foreign or damaged index is an empty one."""
        self._folder = os.path.abspath(folder)
        name = hashlib.blake2b(os.fsencode(self._folder), digest_size=16).hexdigest()
        self._path = cache_folder() / f"{name}.json"
        self._entries: dict[str, object] = {}
        self._changed = False
        try:
            content = json.loads(self._path.read_bytes())
            if content["checked_by"] == CHECKED_BY and content["folder"] == self._folder:
                self._entries = dict(content["images"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            pass

    def size_of(self, name: str, state: FileState) -> Size | None:
        """Upright width and height of a file that was found whole in this very state; None when it was not."""
        entry = self._entries.get(name)
        if not isinstance(entry, list) or len(entry) != 5 or (entry[0], entry[1], entry[2]) != state:
            return None
        width, height = entry[3:]
        return (width, height) if isinstance(width, int) and isinstance(height, int) else None

    def add(self, name: str, state: FileState, size: Size) -> None:
        """Enter a file that was decoded to its end; `state` is from before it was."""
        if is_settled(state):
            self._entries[name] = [*state, *size]
            self._changed = True

    def save(self) -> None:
        """Write the index if it has changed, without files that are gone. Not being able to is only a log line."""
        if not self._changed:
            return
        try:
            present = set(os.listdir(self._folder))
            entries = {name: entry for name, entry in self._entries.items() if name in present}
            content = {"checked_by": CHECKED_BY, "folder": self._folder, "images": entries}
            write_whole_bytes(self._path, json.dumps(content, separators=(",", ":")).encode("ascii"))
        except (OSError, ValueError) as error:
            logger.info("which images are whole is not remembered for the next start: %s", error)
