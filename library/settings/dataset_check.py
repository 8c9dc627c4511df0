"""Checks the tables of a dataset file against the keys' rows; every problem is told, with its place."""

import json
from collections.abc import Mapping
from typing import Any

from library.settings.dataset_keys import COMMAND_LINE_ONLY, DATASET, GENERAL, KEYS, SUBSET, Kind
from library.settings.did_you_mean import did_you_mean

Table = dict[str, Any]


class Checker:
    """Reads tables and collects problems; `name` is the file's name, the first word of every place."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.problems: list[str] = []
        self.unread: set[str] = set()  # keys with a value that is not allowed

    def tables(self, owner: Mapping[str, object], key: str, place: str) -> list[Table]:
        """Return `owner[key]` as a list of tables, empty when absent."""
        value = owner.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            header = f"[[{key}]]" if key == "datasets" else f"[[datasets.{key}]]"
            self.problems.append(f"{place}: {key} must be a list of tables; write {header} above each")
            return []
        return value

    def table(self, owner: Mapping[str, object], key: str, place: str) -> Table:
        """Return `owner[key]` as a table, empty when absent."""
        value = owner.get(key, {})
        if not isinstance(value, dict):
            self.problems.append(f"{place}: {key} must be a table; write [{key}]")
            return {}
        return value

    def unknown(self, table: Mapping[str, object], allowed: tuple[str, ...], place: str) -> None:
        """Complain about keys of `table` that are not among `allowed` (for the top of the file)."""
        for name in table:
            if name not in allowed:
                hint = did_you_mean(name, allowed)
                where = _where(name)
                self.problems.append(
                    f"{place}: {name} stands outside every table; {where}"
                    if where
                    else f"{place}: {name} is not a table of a dataset file; allowed: {', '.join(allowed)}.{hint}"
                )

    def values(self, table: Mapping[str, object], level: str, place: str, kind: Kind | None = None) -> Table:
        """Return the typed values of `table`, whose keys must be allowed at `level`; features not built are left out.

        `kind` is the kind of dataset; None allows the keys of all kinds (in [general]).
        """
        read: Table = {}
        for name, value in table.items():
            problem = _misplaced(name, level, kind)
            if problem is None:
                key = KEYS[name]
                try:
                    typed = key.value.read(value)
                except (ValueError, TypeError):
                    self.unread.add(name)
                    problem = f"{name} = {_toml(value)} is not allowed; allowed: {key.value.allowed}"
                else:
                    if key.off is None:
                        read[name] = typed
                    elif not key.off(typed):
                        problem = f"{name} = {_toml(value)} is not built yet; leave it out"
            if problem is not None:
                self.problems.append(f"{place}: {problem}")
        return read


def _misplaced(name: str, level: str, kind: Kind | None) -> str | None:
    """Say why the key `name` cannot stand at `level`; None when it can."""
    if name not in KEYS:
        if name in COMMAND_LINE_ONLY:
            return f"{name} is no key of a dataset file; give --{name} on the command line"
        here = [key.name for key in KEYS.values() if level in key.places]
        what = {GENERAL: "a general", DATASET: "a dataset", SUBSET: "a subset"}[level]
        return f"{name} is not {what} option.{did_you_mean(name, here) or did_you_mean(name, KEYS)}"
    key = KEYS[name]
    if level not in key.places:
        return f"{name} cannot stand in {level}; {_where(name)}"
    if kind and key.only and kind != key.only:
        other = "without metadata_file (DreamBooth)" if key.only == "dreambooth" else "with metadata_file (fine-tuning)"
        return f"{name} is only for subsets {other}; leave it out"
    return None


def _where(name: str) -> str:
    return f"it belongs in {' or '.join(KEYS[name].places)}" if name in KEYS else ""


def _toml(value: object) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)
