"""Turns dataclass fields into command-line flags: a field is a flag, the literal below it is its help text.

A field's annotation says how its text is read: `bool` is a switch; `int`, `float`, `str`, `Literal[...]` take one
value, `tuple[T, ...]` several; `X | None` may stay unset. `Annotated[X, ...]` adds a Range, a Read or Synonyms.
"""

import argparse
import ast
import dataclasses
import functools
import inspect
import itertools
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from library.settings.did_you_mean import did_you_mean

Raw = str | bool | list[str]
"""A flag's value before it is read: text, a switch, or several texts."""


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers allowed: `low <= value <= high`, strictly where `above` or `below` is given instead."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        """Say whether `value` is allowed."""
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """Words that follow `a number`, for messages."""
        words = (("of at least", self.low), ("above", self.above), ("of at most", self.high), ("below", self.below))
        return " and ".join(f"{word} {limit:g}" for word, limit in words if limit is not None)


@dataclasses.dataclass(frozen=True)
class Read:
    """How to read a text that is none of the plain types; `read` raises ValueError, `allowed` says what would do."""

    read: Callable[[str], object]
    allowed: str


@dataclasses.dataclass(frozen=True)
class Synonyms:
    """Other spellings of a choice: (spelling, choice) pairs."""

    pairs: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flag:
    """One flag as its dataclass field describes it."""

    name: str
    kind: type
    many: bool
    optional: bool
    choices: tuple[Any, ...]
    synonyms: Mapping[str, str]
    limits: Range | None
    reader: Read | None
    default: object
    help: str

    @property
    def is_switch(self) -> bool:
        """A flag that takes no value."""
        return self.kind is bool

    @property
    def allowed(self) -> str:
        """What may stand behind the flag, in words."""
        if self.is_switch:
            return "true or false"
        if self.reader:
            return self.reader.allowed
        if self.choices:
            return "one of " + ", ".join([*map(str, self.choices), *self.synonyms])
        words = {int: "a whole number", float: "a number", str: "a text"}[self.kind]
        return f"{words} {self.limits}" if self.limits else words

    def read(self, raw: Raw, label: str) -> object:
        """Return the typed value of `raw`; `label` is the flag as the user wrote it. Raises ValueError."""
        if self.is_switch or isinstance(raw, bool):
            if not (self.is_switch and isinstance(raw, bool)):
                raise ValueError(f"{label} {raw}: allowed is {self.allowed}")
            return raw
        if self.many:
            return tuple(self._read_one(text, label) for text in ([raw] if isinstance(raw, str) else raw))
        if isinstance(raw, list):
            if not self.reader:
                raise ValueError(f"{label} {raw}: takes one value; allowed is {self.allowed}")
            raw = ",".join(raw)
        if raw == "" and self.optional:
            return None
        return self._read_one(raw, label)

    def _read_one(self, text: str, label: str) -> object:
        known = self.synonyms.get(text, text)
        try:
            value = self.reader.read(known) if self.reader else _finite(self.kind(known))
        except ValueError:
            raise ValueError(f"{label} {text}: allowed is {self.allowed}") from None
        in_range = self.limits is None or (isinstance(value, int | float) and self.limits.holds(value))
        if (self.choices and value not in self.choices) or not in_range:
            hint = did_you_mean(text, map(str, self.choices))
            raise ValueError(f"{label} {text}: allowed is {self.allowed}{'.' if hint else ''}{hint}")
        return value


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(value)
    return value


@functools.cache
def flags_of(group: type) -> tuple[Flag, ...]:
    """Describe every field of the dataclass `group` as a Flag, in order."""
    hints = typing.get_type_hints(group, include_extras=True)
    texts = _field_texts(group)
    return tuple(_flag(field, hints[field.name], texts[field.name]) for field in dataclasses.fields(group))


def _flag(field: "dataclasses.Field[Any]", hint: Any, text: str) -> Flag:
    markers: tuple[object, ...] = ()
    if typing.get_origin(hint) is typing.Annotated:
        hint, *marked = typing.get_args(hint)
        markers = tuple(marked)
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    optional = type(None) in options
    base = next(option for option in options if option is not type(None))
    many = typing.get_origin(base) is tuple and Ellipsis in typing.get_args(base)
    if many:
        base = typing.get_args(base)[0]
    choices = typing.get_args(base) if typing.get_origin(base) is Literal else ()
    reader = next((marker for marker in markers if isinstance(marker, Read)), None)
    kind = type(choices[0]) if choices else str if reader else base
    assert kind in (bool, int, float, str), f"{field.name}: no way to read {kind}"
    return Flag(
        name=field.name,
        kind=kind,
        many=many,
        optional=optional,
        choices=choices,
        synonyms=dict(pair for marker in markers if isinstance(marker, Synonyms) for pair in marker.pairs),
        limits=next((marker for marker in markers if isinstance(marker, Range)), None),
        reader=reader,
        default=field.default,
        help=text,
    )


def _field_texts(group: type) -> dict[str, str]:
    """Map a dataclass's field names to the string literals right below them, read from its source."""
    tree = ast.parse(inspect.getsource(sys.modules[group.__module__]))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == group.__name__)
    texts: dict[str, str] = {}
    for field, below in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            assert is_text, f"{group.__name__}.{field.target.id} has no help text below it"
            texts[field.target.id] = " ".join(str(below.value.value).split())  # type: ignore[attr-defined]
    return texts


def add_flag(group: "argparse._ArgumentGroup", flag: Flag) -> None:
    """Add `flag` to a parser group. argparse only collects the texts; Flag.read types them, so that all errors show."""
    if flag.is_switch:
        group.add_argument(
            f"--{flag.name}", action="store_true", default=argparse.SUPPRESS, help=flag.help.replace("%", "%%")
        )
        return
    names: Sequence[str] = [*map(str, flag.choices), *flag.synonyms]
    plain = "{" + ",".join(names) + "}" if names else {int: "N", float: "X", str: "TEXT"}[flag.kind]
    default = f" (default: {flag.default})" if flag.default not in (None, "", ()) else ""
    group.add_argument(
        f"--{flag.name}",
        nargs="*" if flag.many else None,
        metavar=plain,
        default=argparse.SUPPRESS,
        help=(flag.help + default).replace("%", "%%"),
    )
