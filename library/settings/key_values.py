"""The `key=value` lists of --optimizer_args, --lr_scheduler_args and --network_args."""

import ast
from collections.abc import Sequence
from typing import Any

from library.settings.problems import raise_if_any


def parse_key_values(items: Sequence[str], literal: bool = True, flag: str = "key=value list") -> dict[str, Any]:
    """Split each `key=value` at its first `=`.

    With `literal` a value is a Python literal (`0.05`, `False`, `'cosine'`; `0.9,0.98` is a tuple), otherwise it stays
    text. `flag` names the list in errors. Raises UsageError telling every bad item.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    for item in items:
        key, equals, text = (part.strip() for part in item.partition("="))
        if not equals or not key:
            problems.append(f"{flag} {item}: allowed is key=value, for example weight_decay=0.05")
        elif key in values:
            problems.append(f"{flag} {item}: {key} is given twice")
        elif not literal:
            values[key] = text
        else:
            try:
                values[key] = ast.literal_eval(text)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                values[key] = None
                problems.append(
                    f"{flag} {item}: the value must be a number, True, False, None, a tuple such as 0.9,0.99, "
                    f"or a text in quotes of its own: {key}=\"'{text}'\""
                )
    raise_if_any(problems, flag)
    return values
