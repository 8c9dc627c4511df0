"""From the probabilities of an image tagger to the tags of a caption."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np

from library.settings.counted import counted
from library.settings.did_you_mean import did_you_mean
from library.settings.problems import raise_if_any

CATEGORIES = ("general", "character", "copyright", "artist", "meta", "model", "rating", "quality")
ONE_OF = ("rating", "quality")
"""Categories of which an image has exactly one tag; the others are chosen by a threshold."""
_CSV_CATEGORIES = MappingProxyType(
    {"0": "general", "1": "artist", "3": "copyright", "4": "character", "5": "meta", "9": "rating"}
)
_CSV_HEADER = ["tag_id", "name", "category"]
_LONGEST_FACE = 3  # o_o and the like keep their underscore


@dataclass(frozen=True)
class TaggerTag:
    """What one output of a tagger stands for."""

    output: int
    """Its index."""
    category: str
    """One of CATEGORIES."""
    names: tuple[str, ...]
    """Tags to write; several where a character's name is expanded."""


@dataclass(frozen=True)
class TagSpelling:
    """How the tags of a model are written in captions."""

    remove_underscore: bool = False
    """Blanks for underscores, but in faces like o_o."""
    character_tag_expand: bool = False
    """``name_(series)`` as two tags, ``name`` and ``series``."""
    replacements: Mapping[str, str] = field(default_factory=dict)
    """Written otherwise, after the two above."""


@dataclass(frozen=True)
class TagChoice:
    """Which tags of an image are written, in which order."""

    thresholds: Mapping[str, float]
    """Smallest probability by category, for those not in ONE_OF."""
    places: Mapping[str, str] = field(default_factory=dict)
    """Category of ONE_OF to ``first`` or ``last``; absent: not written."""
    character_tags_first: bool = False
    always_first: Sequence[str] = ()
    """Tags that go to the front, in this order, where an image has them."""
    undesired: Sequence[str] = ()
    """Tags that are never written."""
    by_probability: bool = False
    """Most probable first; else in the model's order."""


def read_tag_file(path: Path) -> list[TaggerTag]:
    """The tags of a model, from a ``selected_tags.csv`` or a ``tag_mapping.json``, as the model spells them.

    Raises ValueError naming the file and what is wrong with it.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        return _from_csv(text) if path.suffix == ".csv" else _from_json(text)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _from_csv(text: str) -> list[TaggerTag]:
    header, *rows = list(csv.reader(text.splitlines())) or [[]]
    if header[:3] != _CSV_HEADER:
        raise ValueError(f"the columns have to begin with {', '.join(_CSV_HEADER)}; they are {', '.join(header)}")
    rows = [row for row in rows if row]
    bad = [row for row in rows if len(row) < 3 or row[2] not in _CSV_CATEGORIES]
    if bad:
        known = ", ".join(f"{number} {name}" for number, name in _CSV_CATEGORIES.items())
        raise ValueError(
            f"{counted(len(bad), 'row is', 'rows are')} of an unknown category ({known} are known), the first is "
            f"{bad[0]}"
        )
    return [TaggerTag(output, _CSV_CATEGORIES[row[2]], (row[1],)) for output, row in enumerate(rows)]


def _from_json(text: str) -> list[TaggerTag]:
    table = json.loads(text)
    if not isinstance(table, dict):
        raise ValueError('it has to be an object {"0": {"tag": ..., "category": ...}}')
    tags, bad = [], []
    for output, entry in table.items():
        name, category = (entry.get("tag"), entry.get("category")) if isinstance(entry, dict) else (None, None)
        if not output.isdecimal() or not isinstance(name, str) or str(category).lower() not in CATEGORIES:
            bad.append(f"{output}: {entry}")
        else:
            tags.append(TaggerTag(int(output), str(category).lower(), (name,)))
    if bad:
        raise ValueError(
            f"{counted(len(bad), 'entry is', 'entries are')} not NUMBER: {{tag, category}} with one of the categories "
            f"{', '.join(CATEGORIES)}; the first is {bad[0]}"
        )
    return tags


def spell_tags(tags: Sequence[TaggerTag], spelling: TagSpelling) -> list[TaggerTag]:
    """The tags as they are to be written. Raises ValueError for a replaced tag that the model does not have."""
    spelled = [
        TaggerTag(tag.output, tag.category, tuple(_spell(name, spelling) for name in _expand(tag, spelling)))
        for tag in tags
    ]
    missing = unknown_tags(spelling.replacements, spelled)
    raise_if_any([f"--tag_replacement: {text}" for text in missing], "--tag_replacement")
    new = spelling.replacements
    return [
        TaggerTag(tag.output, tag.category, tuple(new.get(name, name) for name in tag.names)) if new else tag
        for tag in spelled
    ]


def _expand(tag: TaggerTag, spelling: TagSpelling) -> tuple[str, ...]:
    (name,) = tag.names
    if not spelling.character_tag_expand or tag.category != "character" or not name.endswith(")"):
        return (name,)
    character, bracket, series = name.rpartition("(")
    return (character.removesuffix("_"), series.replace(")", "")) if bracket else (name,)


def _spell(name: str, spelling: TagSpelling) -> str:
    return name.replace("_", " ") if spelling.remove_underscore and len(name) > _LONGEST_FACE else name


def unknown_tags(names: Sequence[str] | Mapping[str, str], tags: Sequence[TaggerTag]) -> list[str]:
    """A line for every name that is none of the model's tags."""
    known = {name for tag in tags for name in tag.names}
    return [
        f"{name!r} is not a tag of this model as it is written here.{did_you_mean(name, known)}"
        for name in names
        if name not in known
    ]


def parse_replacements(text: str) -> dict[str, str]:
    r"""``old,new;old,new`` with ``\,`` and ``\;`` for these characters themselves. Raises ValueError."""
    replacements, problems = {}, []
    for rule in re.split(r"(?<!\\);", text):
        parts = [re.sub(r"\\([,;])", r"\1", part).strip() for part in re.split(r"(?<!\\),", rule)]
        if len(parts) == 2 and all(parts):
            replacements[parts[0]] = parts[1]
        else:
            problems.append(f"--tag_replacement: {rule!r} is not OLD,NEW; separate rules with ; and write , as \\,")
    raise_if_any(problems, "--tag_replacement")
    return replacements


def choose_tags(probabilities: np.ndarray, tags: Sequence[TaggerTag], choice: TagChoice) -> list[str]:
    """The tags of one image, each once; `probabilities`: one for each output of the model."""
    ordered = sorted(tags, key=lambda tag: -probabilities[tag.output]) if choice.by_probability else tags
    found = [tag for tag in ordered if tag.category not in ONE_OF]
    found = [tag for tag in found if probabilities[tag.output] >= choice.thresholds[tag.category]]
    if choice.character_tags_first:
        found.sort(key=lambda tag: tag.category != "character")
    for category in ("quality", "rating"):  # the rating is outermost
        place, of_category = choice.places.get(category), [tag for tag in tags if tag.category == category]
        if place and of_category:
            best = max(of_category, key=lambda tag: probabilities[tag.output])
            found = [best, *found] if place == "first" else [*found, best]
    names = [name for tag in found for name in tag.names if name not in choice.undesired]
    front = [name for name in choice.always_first if name in names]
    return list(dict.fromkeys([*front, *names]))
