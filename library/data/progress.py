"""A bar on the terminal for work that takes long."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

DELAY_S = 1.0
"""A bar appears after this many seconds only."""


def progress(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """The items, with a bar named `what` that goes away at the end; nothing is shown where there is no terminal."""
    yield from tqdm(items, total=total, desc=what, delay=DELAY_S, disable=None, leave=False)
