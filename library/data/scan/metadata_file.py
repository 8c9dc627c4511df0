"""The metadata file of a fine-tuning data set: which images it names, with which captions and tags.

JSON `{key: {"caption": ..., "tags": ...}}`, or JSON lines `{"image_path": key, "caption": ..., "tags": ...}`. A key is
a path (absolute; relative to image_dir or beginning with it; without image_dir relative to the metadata file's folder
or the working folder), or such a path without its ending.
"""

import functools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library.data.scan.image_files import FolderListing, list_folder
from library.data.text.text_files import read_text
from library.settings.table_file import RepeatedKeyError, read_json


@dataclass(frozen=True)
class MetadataEntry:
    """One image of a metadata file."""

    key: str
    caption: str | None
    tags: str | None


def read_metadata(path: Path) -> list[MetadataEntry]:
    """All entries sorted by key. Raises ValueError that says what is wrong with the file, every bad entry named."""
    try:
        pairs = list(_pairs(read_text(path), json_lines=path.suffix.lower() == ".jsonl"))
    except OSError as error:
        raise ValueError(f"metadata_file {str(path)!r} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"metadata_file {str(path)!r} is not valid JSON: {error}") from None
    except RepeatedKeyError as error:
        raise ValueError(f"metadata_file {str(path)!r}: {error}") from None
    except RecursionError:
        raise ValueError(f"metadata_file {str(path)!r} is nested too deeply") from None
    problems = [problem for key, value in pairs for problem in _problems(key, value)]
    if problems:
        raise ValueError(f"metadata_file {str(path)!r}: " + "; ".join(problems))
    return sorted(
        (MetadataEntry(key, value.get("caption"), value.get("tags")) for key, value in pairs),
        key=lambda entry: entry.key,
    )


def _pairs(text: str, *, json_lines: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    if not json_lines:
        content = read_json(text)
        if not isinstance(content, dict):
            raise json.JSONDecodeError("the outermost value has to be an object {key: {...}}", text, 0)
        yield from content.items()
        return
    start = 0
    for line in text.split("\n"):  # only these break lines; captions may hold others that str.splitlines knows
        if line.strip():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as error:
                raise json.JSONDecodeError(error.msg, text, start + error.pos) from None
            if not isinstance(entry, dict) or not isinstance(entry.get("image_path"), str):
                raise json.JSONDecodeError("a line has to be an object with an image_path", text, start)
            yield entry["image_path"], entry
        start += len(line) + 1


def _problems(key: str, value: object) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{key!r} has to be an object with caption or tags, not {value!r}"
        return
    for name in ("caption", "tags"):
        if not isinstance(value.get(name), str | None):
            yield f"{name} of {key!r} has to be text, not {value[name]!r}"


class KeyResolver:
    """From a metadata key to the image file it stands for."""

    def __init__(self, image_dir: Path | None, metadata_file: Path) -> None:
        """`image_dir`: base of relative keys, or how they begin; None: they start at the metadata or working folder."""
        self._image_dir = image_dir
        self._metadata_folder = metadata_file.parent
        self._listing: Callable[[Path], FolderListing] = functools.cache(list_folder)

    def find(self, key: str) -> Path:
        """The image of a key. Raises ValueError when there is none, or more than one with that stem."""
        candidates = self._candidates(Path(key))
        for candidate in candidates:
            if candidate.is_file():
                return candidate
            matches = self._with_stem(candidate)
            if len(matches) > 1:
                names = ", ".join(match.name for match in matches)
                raise ValueError(f"key {key!r} fits several images ({names}); write the one meant with its ending")
            if matches:
                return matches[0]
        raise ValueError(f"key {key!r} has no image; looked for {' and '.join(str(path) for path in candidates)}")

    def _candidates(self, key: Path) -> list[Path]:
        if key.is_absolute():
            return [key]
        if self._image_dir is None:
            return [self._metadata_folder / key, key]
        # Written with --full_path from a relative folder, a key begins with that folder.
        begins_with_it = Path(os.path.normpath(key)).is_relative_to(os.path.normpath(self._image_dir))
        return [self._image_dir / key, *([key] if begins_with_it else [])]

    def _with_stem(self, candidate: Path) -> list[Path]:
        if not candidate.parent.is_dir():
            return []
        return [path for path in self._listing(candidate.parent).images if path.stem == candidate.name]
