"""A folder that rows of another data set are written into: pictures, metadata JSON and a TOML to train with.

A journal notes every finished row, so that an interrupted import goes on where it stopped.
"""

import fcntl
import io
import json
import os
import shutil
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from library.curation.image_saving import save_rgb
from library.curation.metadata_table import save_table
from library.data.buckets import Size
from library.data.images.image_util import check_image, load_rgb, readable_formats
from library.files.safe_names import safe_relative_name
from library.files.whole_file import ensure_writable, write_whole_bytes, write_whole_path

IMAGES, METADATA, CONFIG, JOURNAL = "images", "metadata.json", "dataset.toml", "import.jsonl"
INCOMING = ".incoming"
"""The picture at hand, until it is known to be one."""
KEEP = "keep"
"""Image format that stands for the one an image has."""
IMAGE_FORMATS = (KEEP, "png", "jpg", "webp")
_ENDING_OF = MappingProxyType(
    {"PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "WEBP": ".webp", "BMP": ".bmp", "AVIF": ".avif", "JXL": ".jxl"}
)

TOML = """# Made by tools/convert_hf_dataset.py
[general]
enable_bucket = true
{wildcard}
[[datasets]]
resolution = {resolution}
batch_size = 1

  [[datasets.subsets]]
  image_dir = {image_dir}
  metadata_file = {metadata_file}
  num_repeats = 1
"""
WILDCARD = "enable_wildcard = true    # one of the lines of a caption is drawn each time\n"


@dataclass(frozen=True)
class ImportedRow:
    """What became of one row."""

    row: int
    """Its place in the data set, from 0."""
    key: str = ""
    """The picture's path below IMAGES, with its ending."""
    size: Size | None = None
    """Upright width and height in pixels."""
    caption: str | None = None
    tags: str | None = None
    problem: str = ""
    """Why it was left out; then all the above is empty."""


class ImportFolder:
    """The folder and what is done so far."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], image_format: str = KEEP) -> None:
        """`settings` say what is imported and how; an import can only go on with the same ones.

        Raises ValueError when the folder cannot be written to, holds something else, or is being imported into.
        """
        self.folder = folder
        self.rows: list[ImportedRow] = []
        self._ending = "" if image_format == KEEP else f".{image_format}"
        self._journal = folder / JOURNAL
        self._settings = {**settings, "image_format": image_format}
        ensure_writable(folder)
        self._lock_others_out()
        if self._journal.exists():
            self._go_on()
        else:
            self._begin()
        self._row_of = {row.key: row.row for row in self.rows if row.key}

    def _lock_others_out(self) -> None:
        """Hold the folder for as long as this object or its process lives."""
        held = os.open(self.folder, os.O_RDONLY)
        weakref.finalize(self, os.close, held)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{self.folder}: another import is writing there; wait for its end, or choose another folder"
            ) from error
        except OSError:  # some network folders have no locks
            pass

    def _begin(self) -> None:
        there = [name for name in (IMAGES, METADATA, CONFIG) if (self.folder / name).exists()]
        if there:
            raise ValueError(
                f"{self.folder}: {' and '.join(there)} are there already, and not from an import that could go on; "
                "choose another folder"
            )
        write_whole_bytes(self._journal, json.dumps(self._settings).encode() + b"\n")

    def _go_on(self) -> None:
        lines = self._journal.read_bytes().split(b"\n")
        before = json.loads(lines[0])
        different = [key for key in {**before, **self._settings} if before.get(key) != self._settings.get(key)]
        if different:
            changes = "; ".join(f"{key} {before.get(key)!r}, now {self._settings.get(key)!r}" for key in different)
            raise ValueError(
                f"{self.folder} holds an import with other settings ({changes}); choose another folder, or delete it"
            )
        whole = lines[1:-1]  # what stands behind the last line feed was being written when it stopped
        self.rows = [_read_row(json.loads(line)) for line in whole]
        for half_written in self.folder.rglob(".part-*"):  # by a process that was killed
            half_written.unlink()
        if lines[-1]:
            write_whole_bytes(self._journal, b"".join(line + b"\n" for line in lines[:-1]))

    def add(self, data: bytes, name: str | None, caption: str | None, tags: str | None) -> ImportedRow:
        """Write the picture of the next row; `name` is its path without ending (None: the row's number).

        A row whose picture or name cannot be used is noted as such. Raises ValueError when the disk refuses.
        """
        number = len(self.rows)
        incoming = self.folder / INCOMING
        try:
            incoming.write_bytes(data)
        except OSError as error:
            raise ValueError(f"{incoming}: could not be written: {error.strerror}") from error
        try:
            stem = f"{number:08d}" if name is None else safe_relative_name(name)
            key = stem + (self._ending or _ending_of(data))
            if key in self._row_of:
                raise ValueError(f"the name {key!r} is that of row {self._row_of[key]}, too")
            size, picture = self._decode(incoming)
        except ValueError as error:
            return self.leave_out(str(error).replace(f"{incoming}: ", ""))

        def write(part: Path) -> None:
            shutil.copyfile(incoming, part) if picture is None else save_rgb(part, picture)

        write_whole_path(self.folder / IMAGES / key, write)
        return self._note(ImportedRow(number, key, size, caption, tags))

    def leave_out(self, problem: str) -> ImportedRow:
        """Note that the next row cannot be imported, and why."""
        return self._note(ImportedRow(len(self.rows), problem=problem))

    def _decode(self, path: Path) -> tuple[Size, np.ndarray | None]:
        """The upright size, and the pixels when they are to be written anew. Raises ValueError for a broken picture."""
        if not self._ending:
            return check_image(path), None
        picture = load_rgb(path)
        return (picture.shape[1], picture.shape[0]), picture

    def _note(self, row: ImportedRow) -> ImportedRow:
        with open(self._journal, "ab") as stream:
            stream.write(json.dumps(asdict(row)).encode() + b"\n")
        self.rows.append(row)
        self._row_of[row.key] = row.row
        return row

    def finish(self, resolution: int) -> Path:
        """Write the metadata and the TOML from all rows so far; returns the TOML's path.

        Raises ValueError when there is no picture, or when the disk refuses.
        """
        (self.folder / INCOMING).unlink(missing_ok=True)
        rows = [row for row in self.rows if row.key]
        if not rows:
            raise ValueError(f"{self.folder}: no row has a picture that can be used")
        save_table(self.folder / METADATA, {row.key: _entry(row) for row in rows})
        several_lines = any("\n" in (row.caption or "") for row in rows)
        config = self.folder / CONFIG
        text = TOML.format(
            resolution=resolution,
            image_dir=json.dumps(str((self.folder / IMAGES).resolve()), ensure_ascii=False),
            metadata_file=json.dumps(str((self.folder / METADATA).resolve()), ensure_ascii=False),
            wildcard=WILDCARD if several_lines else "",
        )
        write_whole_bytes(config, text.encode())
        return config


def _entry(row: ImportedRow) -> dict[str, Any]:
    fields = {"caption": row.caption, "tags": row.tags, "image_size": list(row.size or ())}
    return {name: value for name, value in fields.items() if value is not None}


def _read_row(fields: dict[str, Any]) -> ImportedRow:
    size = fields.pop("size")
    return ImportedRow(**fields, size=(size[0], size[1]) if size else None)


def _ending_of(data: bytes) -> str:
    """The file ending of a picture's format. Raises ValueError for anything that is not opened here."""
    formats = readable_formats()
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            return _ENDING_OF[image.format or ""]
    except (OSError, KeyError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"it is no image in one of the formats {', '.join(formats)}") from error
