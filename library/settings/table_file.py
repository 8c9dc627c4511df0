"""Reads a TOML or JSON file into a table, with errors that name file, line and column."""

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path

from library.settings.problems import UsageError


def read_table(path: str | Path, suffixes: Sequence[str] = (".toml", ".json")) -> dict[str, object]:
    """Return the file's top-level table. `suffixes` are the endings allowed; the ending chooses the syntax.

    UTF-8 with or without BOM. Raises UsageError: no such file, wrong ending, unreadable, bad syntax, not a table.
    """
    file = Path(path)
    if file.suffix.lower() not in suffixes:
        raise UsageError(f"{path}: the name must end in {' or '.join(suffixes)}")
    text = _read_text(file)
    try:
        table = read_json(text) if file.suffix.lower() == ".json" else tomllib.loads(text)
    except json.JSONDecodeError as error:
        reason = f"{error.msg} (at line {error.lineno}, column {error.colno})"
        raise UsageError(f"{path}: not valid JSON: {reason}") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not valid TOML: {_toml_reason(str(error), text)}") from None
    except RepeatedKeyError as error:
        raise UsageError(f"{path}: {error}") from None
    except RecursionError:
        raise UsageError(f"{path}: nested too deeply to be a settings file") from None
    if not isinstance(table, dict):
        raise UsageError(f"{path}: the file must hold a table at its top, not {type(table).__name__}")
    return table


class RepeatedKeyError(ValueError):
    """A JSON object has a key twice."""


def read_json(text: str) -> object:
    """The value of a JSON text. Raises json.JSONDecodeError, and RepeatedKeyError where json.loads takes the last."""
    return json.loads(text, object_pairs_hook=_unrepeated)


def _unrepeated(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise RepeatedKeyError(f"{repeated!r} is there twice in one object; keep one of them")
    return table


def _read_text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError:
        raise UsageError(f"{file}: no such file (looked for {file.absolute()})") from None
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UsageError(f"{file}: not UTF-8 text (line {line}); save it as UTF-8") from None


def _toml_reason(reason: str, text: str) -> str:
    """tomllib's message, with a line number for the end of the file and a hint on backslashes (Windows paths)."""
    lines = text.splitlines() or [""]
    reason = reason.replace("(at end of document)", f"(at line {len(lines)}, column {len(lines[-1]) + 1})")
    if "Unescaped '\\'" in reason or "Invalid hex value" in reason:
        reason += "; write paths that hold backslashes in single quotes: 'C:\\pictures'"
    return reason
