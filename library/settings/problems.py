"""Collected complaints: everything that is wrong with an input is told at once."""

from collections.abc import Sequence


class UsageError(ValueError):
    """The user's input is wrong; the text says what, where, what is allowed and what to do."""


def raise_if_any(problems: Sequence[str], what: str) -> None:
    """Raise one UsageError holding every line of `problems`; `what` names the input (for the heading)."""
    if len(problems) == 1:
        raise UsageError(problems[0])
    if problems:
        raise UsageError("\n".join([f"{len(problems)} problems with {what}:", *(f"  {line}" for line in problems)]))
