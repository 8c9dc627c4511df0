"""Checks the tables of a dataset file against the keys' rows; every problem is told, with its place."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from library.settings.dataset_keys import COMMAND_LINE_ONLY, DATASET, GENERAL, KEYS, SUBSET, Key, Kind
from library.settings.did_you_mean import did_you_mean

Table = dict[str, Any]

KIND_WORDS: Mapping[Kind, str] = MappingProxyType({
    "dreambooth": "subsets with neither metadata_file nor conditioning_data_dir (DreamBooth)",
    "finetuning": "subsets with metadata_file (fine-tuning)",
    "masked": "subsets with conditioning_data_dir (--masked_loss)",
})  # fmt: skip


class Checker:
    """Reads tables and collects problems; `name` is the file's name, the first word of every place."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.problems: list[str] = []
        self.notes: list[str] = []  # what is taken, and should be known
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
        """Return the typed values of `table`, whose keys must be allowed at `level`.

        `kind` is the kind of dataset; None allows the keys of all kinds (in [general]).
        """
        read: Table = {}
        for name, value in table.items():
            problem = _misplaced(name, level, kind)
            if problem is None:
                try:
                    read[name] = self._typed(KEYS[name], value, level, place)
                except (ValueError, TypeError):
                    self.unread.add(name)
                    problem = f"{name} = {_toml(value)} is not allowed; allowed: {KEYS[name].value.allowed}"
                else:
                    why = KEYS[name].refused(read[name])
                    problem = f"{name} = {_toml(value)}: {why}" if why else None
            if problem is not None:
                self.problems.append(f"{place}: {problem}")
        return read

    def _typed(self, key: Key, value: object, level: str, place: str) -> object:
        """Return the typed value of a key and note what should be known about it; raises ValueError or TypeError."""
        given = f"{place}: {key.name} = {_toml(value)}"
        try:
            typed = key.value.read(value)
        except (ValueError, TypeError):
            if key.value.slip is None or level not in key.slips_in:
                raise
            typed = key.value.slip(value)
            read_as = "left unset" if typed is None else f"read as {_toml(typed)}"
            self.notes.append(f"{given} is {read_as}; allowed: {key.value.allowed}")
        if line := key.note(typed):
            self.notes.append(f"{given}: {line}")
        return typed


def _misplaced(name: str, level: str, kind: Kind | None) -> str | None:
    """Say why the key `name` cannot stand at `level`; None when it can."""
    if name not in KEYS:
        if name in COMMAND_LINE_ONLY:
            return f"{name} is no key of a dataset file; give --{name} on the command line"
        here = [key.name for key in KEYS.values() if level in key.places]
        here += ["subsets"] if level == DATASET else []
        what = {GENERAL: "a general", DATASET: "a dataset", SUBSET: "a subset"}[level]
        return f"{name} is not {what} option.{did_you_mean(name, here) or did_you_mean(name, KEYS)}"
    key = KEYS[name]
    if level not in key.places:
        return f"{name} cannot stand in {level}; {_where(name)}"
    if kind and kind not in key.kinds:
        return f"{name} is only for {' and '.join(KIND_WORDS[known] for known in key.kinds)}; leave it out"
    return None


def _where(name: str) -> str:
    return f"it belongs in {' or '.join(KEYS[name].places)}" if name in KEYS else ""


def _toml(value: object) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)
