"""Where this project remembers what can be found out again: below $XDG_CACHE_HOME, or else ~/.cache."""

import os
import time
from pathlib import Path

FileState = tuple[int, int, int]
"""Size in bytes, time of change of the content and of the entry, both in nanoseconds."""

SETTLED_NS = 2_000_000_000
"""A file changed less than this many nanoseconds ago may change again without a new time, where clocks are coarse."""


def user_cache_folder() -> Path:
    """The project's folder there; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mindspore-sd-scripts"


def file_state(path: Path | str) -> FileState:
    """What tells one content of a file from another without reading it. Raises OSError."""
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def is_settled(state: FileState) -> bool:
    """Whether the file was left alone long enough for its times to tell the next change."""
    return time.time_ns() - max(state[1:]) > SETTLED_NS
