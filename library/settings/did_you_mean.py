"""The nearest allowed name to a mistyped one."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """Return ` Did you mean NAME?` (with its leading blank) or an empty string when nothing is near."""
    near = difflib.get_close_matches(word.lower(), list(allowed), n=1, cutoff=0.7)
    return f" Did you mean {near[0]}?" if near else ""
