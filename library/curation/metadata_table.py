"""A metadata file as a table that programs change: key -> fields, whatever the fields are.

JSON `{key: {field: value}}`, or JSON lines with the key as `image_path`; the ending of the name tells which.
"""

import json
from pathlib import Path
from typing import Any

from library.files.whole_file import write_whole_bytes
from library.settings.problems import raise_if_any
from library.settings.table_file import read_table

LINES = ".jsonl"
ENDINGS = (".json", LINES)

Table = dict[str, dict[str, Any]]


def check_table_name(path: Path) -> None:
    """Raise ValueError unless the ending is one of ENDINGS."""
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"{path}: the name of a metadata file has to end in {' or '.join(ENDINGS)}")


def load_table(path: Path) -> Table:
    """All entries in the file's order. Raises ValueError naming the file and every bad entry."""
    check_table_name(path)
    if path.suffix.lower() == LINES:
        return _load_lines(path)
    table = read_table(path, ENDINGS)
    problems = [
        f"{path}: {key!r} has to be an object with caption or tags, not {value!r}"
        for key, value in table.items()
        if not isinstance(value, dict)
    ]
    raise_if_any(problems, str(path))
    return {key: value for key, value in table.items() if isinstance(value, dict)}


def _load_lines(path: Path) -> Table:
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text; save it as UTF-8") from error
    table: Table = {}
    problems = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            problems.append(f"{path}: line {number} is not JSON: {error}")
            continue
        key = entry.pop("image_path", None) if isinstance(entry, dict) else None
        if not isinstance(key, str):
            problems.append(f"{path}: line {number} has to be an object with an image_path")
        elif key in table:
            problems.append(f"{path}: line {number}: {key!r} is there twice")
        else:
            table[key] = entry
    raise_if_any(problems, str(path))
    return table


def save_table(path: Path, table: Table) -> None:
    """Write the table as a whole file in UTF-8. Raises ValueError when it cannot be written."""
    check_table_name(path)
    if path.suffix.lower() == LINES:
        # in ASCII, since many readers break lines at other characters than the line feed
        lines = (json.dumps({"image_path": key, **entry}) for key, entry in table.items())
        text = "".join(line + "\n" for line in lines)
    else:
        text = json.dumps(table, indent=2, ensure_ascii=False) + "\n"

    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{path}: {error.object[max(0, error.start - 60) : error.end]!r}: the name is not UTF-8"
        ) from error
    write_whole_bytes(path, data)
