"""What the values of a dataset file's keys may be: readers that type a value, and the words for what is allowed."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

RESIZE_FILTERS = ("lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area", "box")


@dataclass(frozen=True)
class Value:
    """What a key's value may be. `read` returns it typed or raises ValueError or TypeError; `allowed` is in words."""

    read: Callable[[object], object]
    allowed: str
    slip: Callable[[object], object] | None = None
    """Reads a value that is not allowed and that the original takes all the same, or raises like `read`."""


def _whole(low: int | None = None) -> Value:
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or (low is not None and value < low):
            raise ValueError
        return value

    def read_switch(value: object) -> int:
        """A bool is an int to Python and so to the original, which reads `batch_size = true` as 1."""
        if not isinstance(value, bool):
            raise TypeError
        return read(int(value))

    return Value(read, "a whole number" if low is None else f"a whole number of at least {low}", read_switch)


def number(low: float | None = None, high: float | None = None) -> Value:
    """A number within the limits, whole or not; the original refuses a whole one for some keys."""

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError
        if not -sys.float_info.max <= value <= sys.float_info.max:  # nor NaN
            raise ValueError
        if (low is not None and value < low) or (high is not None and value > high):
            raise ValueError
        return float(value)

    limits = [f"{word} {limit:g}" for word, limit in (("of at least", low), ("of at most", high)) if limit is not None]
    return Value(read, " ".join(["a number", " and ".join(limits)]).strip())


def _of_type(kind: type, allowed: str) -> Value:
    def read(value: object) -> object:
        if not isinstance(value, kind):
            raise TypeError
        return value

    return Value(read, allowed)


def _pair(item: Value) -> Callable[[object], tuple[object, object]]:
    def read(value: object) -> tuple[object, object]:
        if not isinstance(value, list) or len(value) != 2:
            raise ValueError
        return item.read(value[0]), item.read(value[1])

    return read


def _read_resolution(value: object) -> object:
    return _pair(SIDE)(value) if isinstance(value, list) else (SIDE.read(value), value)


def _read_filter(value: object) -> object:
    if value not in RESIZE_FILTERS:
        raise ValueError
    return value


def _no_filter(value: object) -> None:
    """Any other text: the original lets it through and then resizes in its default way."""
    TEXT.read(value)


def _read_range(value: object) -> tuple[object, object]:
    low, high = _pair(number(0))(value)
    if low > high:  # type: ignore[operator]
        raise ValueError
    return low, high


def _read_filled(value: object) -> object:
    if TEXT.read(value) == "":
        raise ValueError
    return value


def _read_extension(value: object) -> str:
    text = TEXT.read(value)
    assert isinstance(text, str)
    return text if text.startswith(".") else f".{text}"


WHOLE = _whole()
COUNT = _whole(0)
SIDE = _whole(1)
NUMBER = number()
RATE = number(0, 1)
YES_NO = _of_type(bool, "true or false")
TEXT = _of_type(str, "a text in quotes")
FILLED = Value(_read_filled, "a text in quotes that is not empty")
TABLE = _of_type(dict, "a table")
RESOLUTION = Value(_read_resolution, "whole numbers of pixels, one side or [width, height]: 1024 or [1216, 832]")
FILTER = Value(_read_filter, "one of " + ", ".join(RESIZE_FILTERS), _no_filter)
EXTENSION = Value(_read_extension, 'a file ending such as ".txt"')
RANGE = Value(_read_range, "two numbers of at least 0, the smaller one first, for example [1.0, 2.0]")
