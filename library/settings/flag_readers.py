"""Readers for flag values that are more than one number or one word."""

from library.settings.flags import Read


def _resolution(text: str) -> tuple[int, int]:
    sides = [int(part) for part in text.split(",")]
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise ValueError(text)
    return sides[0], sides[-1]


def _low_high(text: str) -> tuple[float, float]:
    low, high = (float(part) for part in text.split(","))
    if not 0 <= low <= high < float("inf"):
        raise ValueError(text)
    return low, high


def _steps_or_ratio(text: str) -> int | float:
    if text.endswith("%"):
        ratio = float(text[:-1]) / 100
        if not 0 <= ratio <= 1:
            raise ValueError(text)
        return ratio
    if text.isdecimal():
        return int(text)
    ratio = float(text)
    if not 0 <= ratio < 1:
        raise ValueError(text)
    return ratio


RESOLUTION = Read(_resolution, "a side or width,height in pixels, for example 1024 or 1216,832")
"""`S` or `W,H` to (width, height)."""

LOW_HIGH = Read(_low_high, "two numbers of at least 0, the smaller one first, for example 1.0,2.0")
"""`LOW,HIGH` to (low, high)."""

STEPS_OR_RATIO = Read(_steps_or_ratio, "a whole number of steps, a ratio below 1 such as 0.05, or a part such as 5%")
"""A whole number stays int; a ratio or a percentage is a float and means that part of all steps."""
