"""Fingerprints in cache files: what an entry was made from, and a digest of its arrays.

kohya's scripts ignore the key. The digest of the arrays binds them to it: where another program has put other arrays
beside an old fingerprint, they do not fit together any more.
"""

import hashlib
import json
from collections.abc import Mapping

import numpy as np

from library.files.hashes import arrays_digest

FINGERPRINT = "fingerprint"
"""Key in the cache file: JSON text as uint8."""

MadeFrom = Mapping[str, object]
"""What an entry was made from, by name; values that JSON has."""


def made_from_digest(made_from: MadeFrom) -> str:
    """A short form of what an entry was made from, for the index."""
    return hashlib.blake2b(_text(made_from), digest_size=16).hexdigest()


def make_fingerprint(made_from: MadeFrom, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The array to store beside `arrays`."""
    return np.frombuffer(_text({"made_from": made_from, "content": arrays_digest(arrays)}), np.uint8)


def check_fingerprint(fingerprint: np.ndarray | None, made_from: MadeFrom, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError, saying what differs, unless `arrays` are what was stored and were made from `made_from`."""
    if fingerprint is None:
        raise ValueError("it has no fingerprint that tells what it was made from (kohya's scripts write none)")
    found, content = _read(fingerprint)
    wanted = json.loads(_text(made_from))
    differing = [name.replace("_", " ") for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
    if differing:
        raise ValueError(f"it was made from something else (different: {', '.join(differing)})")
    if content != arrays_digest(arrays):
        raise ValueError("its arrays were changed by another program, or damaged")


def _read(fingerprint: np.ndarray) -> tuple[dict[str, object], object]:
    try:
        table = json.loads(fingerprint.astype(np.uint8).tobytes())
        return dict(table["made_from"]), table["content"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError("its fingerprint cannot be read") from None


def _text(table: Mapping[str, object]) -> bytes:
    return json.dumps(table, sort_keys=True).encode("ascii")
