"""SHA-256 of large files, remembered from run to run by path, size and times.

A base model of 7 GB takes half a minute to hash; it hardly ever changes.
"""

import json
import logging
from pathlib import Path

from library.files.hashes import file_sha256
from library.files.user_cache import FileState, file_state, is_settled, user_cache_folder
from library.files.whole_file import write_whole_bytes

logger = logging.getLogger(__name__)


def remembered_sha256(path: str | Path) -> str:
    """``hashes.file_sha256``, without reading a file that is as it was when it was last hashed."""
    absolute = str(Path(path).absolute())
    try:
        state = file_state(absolute)
    except OSError:
        return file_sha256(path)
    known = _read(_memory_path()).get(absolute)
    if known is not None and known[:3] == [*state]:
        return str(known[3])
    digest = file_sha256(path)
    if Path(absolute).is_file() and is_settled(state):
        _remember(absolute, state, digest)
    return digest


def _memory_path() -> Path:
    return user_cache_folder() / "sha256.json"


def _read(path: Path) -> dict[str, list[object]]:
    """Absolute path -> [size, two times, digest]; a missing or damaged file is an empty one."""
    try:
        content = json.loads(path.read_bytes())
        return {name: entry for name, entry in content.items() if isinstance(entry, list) and len(entry) == 4}
    except (OSError, ValueError, AttributeError):
        return {}


def _remember(name: str, state: FileState, digest: str) -> None:
    """Add one entry; files that are gone are forgotten. Not being able to write is only a log line."""
    path = _memory_path()
    entries = {other: entry for other, entry in _read(path).items() if Path(other).is_file()}
    text = json.dumps({**entries, name: [*state, digest]}, indent=0).encode("utf-8")
    try:
        write_whole_bytes(path, text)
    except ValueError as error:
        logger.info("the hash of %s is not remembered: %s", name, error)
