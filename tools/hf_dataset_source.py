"""Opening what the `datasets` library can read: hub names, folders, parquet files, WebDataset archives."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from library.settings.did_you_mean import did_you_mean
from library.settings.problems import raise_if_any

INSTALL = "pip install -r requirements-tools.txt"
_BUILDER_OF = MappingProxyType({".parquet": "parquet", ".tar": "webdataset"})
IMAGE_FOLDER = "imagefolder"
_SAVED_MARKS = ("state.json", "dataset_dict.json")  # what save_to_disk leaves
TAR_END = bytes(1024)
"""What every archive ends with."""
CAPTION_COLUMNS = ("text", "caption", "prompt", "txt", "description")
"""Names of columns that hold captions, in this order, when none is asked for."""


@dataclass(frozen=True)
class Source:
    """One split of an opened data set."""

    name: str
    """Hub name, or full path."""
    data: Any
    """A Dataset or IterableDataset."""
    split: str
    fingerprint: str
    """Changes when the data do."""
    picture_folders: tuple[Path, ...] = ()
    """Where rows may name files that are their pictures; without any, pictures have to come with the rows."""

    @property
    def columns(self) -> dict[str, str]:
        """Column to its type, in words."""
        return {name: str(kind) for name, kind in self.data.features.items()}

    @property
    def described_columns(self) -> str:
        """The columns as an error shows them."""
        return ", ".join(f"{name} ({kind})" for name, kind in self.columns.items())

    @property
    def image_columns(self) -> list[str]:
        """Columns whose type says that they hold pictures; other libraries write it as the struct that it is."""
        return [
            name
            for name, kind in self.data.features.items()
            if type(kind).__name__ == "Image" or (isinstance(kind, Mapping) and set(kind) == {"bytes", "path"})
        ]

    def class_names(self, column: str) -> list[str] | None:
        """The names of a column of class labels, else None."""
        kind = self.data.features.get(column)
        return list(kind.names) if type(kind).__name__ == "ClassLabel" else None

    def rows(self, start: int, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The rows from `start` on, pictures not decoded. Raises ValueError when the data cannot be read."""
        datasets = import_datasets()
        data = self.data.select_columns(list(columns))
        for name in self.image_columns:
            if name in columns:
                data = data.cast_column(name, datasets.Image(decode=False))
        with _reading(self.name):
            # Not data.skip(start): of parquet files with several row groups it gives other rows (datasets 4.8).
            yield from islice(data, start, None)


def import_datasets() -> Any:
    """The `datasets` library. Raises ValueError saying what to install when it is missing."""
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"this needs the datasets library, which cannot be loaded ({error}): {INSTALL}") from error
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # it would ask the hub even for local files
    return datasets


def open_source(name: str, config: str | None, split: str | None, revision: str | None) -> Source:
    """Open a hub name, a folder (of images, parquet, WebDataset; or from save_to_disk), a .parquet or a .tar file.

    Raises ValueError saying what there is when the source, its configuration or its split is not.
    """
    datasets = import_datasets()
    path = Path(name).expanduser()
    if not path.exists():
        return _open_hub(name, config, split, revision)
    if revision is not None:
        raise ValueError(f"--revision is for hub names; {name} is here")
    name = str(path.resolve())
    if path.is_dir() and any((path / mark).exists() for mark in _SAVED_MARKS):
        with _reading(name):
            saved = datasets.load_from_disk(str(path))
        splits = saved if isinstance(saved, dict) else {"train": saved}
        split = choose_split(name, list(splits), split)
        return Source(name, splits[split], split, _file_fingerprint(path))
    return _open_files(name, path, config, split)


def _open_files(name: str, path: Path, config: str | None, split: str | None) -> Source:
    """Local files, row by row; nothing is copied into a cache."""
    datasets = import_datasets()
    where: dict[str, Any] = {"path": str(path)}
    if path.is_file():
        if path.suffix.lower() not in _BUILDER_OF:
            raise ValueError(f"{name}: a single file has to be one of {', '.join(_BUILDER_OF)}")
        where = {"path": _BUILDER_OF[path.suffix.lower()], "data_files": str(path)}
    _check_archives([path] if path.is_file() else sorted(path.rglob("*.tar")))
    with _reading(name):
        builder = datasets.load_dataset_builder(**where, name=config)
        names = datasets.get_dataset_split_names(where["path"], config, data_files=where.get("data_files"))
    split = choose_split(name, names, split)
    with _reading(name):
        data = builder.as_streaming_dataset(split=split)
        if data.features is None:
            raise ValueError("the columns of the data cannot be told")
    # the library gives links in the folder's own name as they are, or followed
    folders = (Path(os.path.abspath(path)), path.resolve()) if builder.name == IMAGE_FOLDER else ()
    return Source(name, data, split, _file_fingerprint(path), folders)


def _open_hub(name: str, config: str | None, split: str | None, revision: str | None) -> Source:
    """A hub name, through the library's cache, so that an interrupted download goes on."""
    datasets = import_datasets()
    from huggingface_hub import constants

    if Path(name).suffix in _BUILDER_OF or name.count("/") > 1 or name.startswith(("/", ".", "~")):
        raise ValueError(f"there is no file or folder {name}, and it is no hub name like owner/name")
    with _reading(name):
        builder = datasets.load_dataset_builder(name, config, revision=revision)
        names = datasets.get_dataset_split_names(name, config, revision=revision)
    split = choose_split(name, names, split)
    with _reading(name):
        data = datasets.load_dataset(name, config, split=split, revision=revision)
    own = Path(os.path.abspath(constants.HF_HUB_CACHE)) / f"datasets--{name.replace('/', '--')}"
    folders = (own, Path(datasets.config.EXTRACTED_DATASETS_PATH)) if builder.name == IMAGE_FOLDER else ()
    return Source(name, data, split, str(builder.hash), folders)


def choose_split(name: str, names: Sequence[str], asked: str | None) -> str:
    """The split asked for, else the only one, else train. Raises ValueError listing the splits."""
    if asked is None and len(names) == 1:
        return names[0]
    wanted = asked or "train"
    if wanted in names:
        return wanted
    raise ValueError(
        f"{name}: there is no split {wanted!r}; --split can be {', '.join(names)}.{did_you_mean(wanted, names)}"
    )


def choose_columns(source: Source, asked: Mapping[str, str | None], *, captions: bool) -> dict[str, str]:
    """The columns to read by their use: image, and as asked for or found caption, tags, name.

    A column may be named with a path into it, ``json.caption``. Raises ValueError listing the columns there are.
    """
    problems = [
        f"there is no column {column!r} for --{use}_column.{did_you_mean(column, source.columns)}".removesuffix(".")
        for use, column in asked.items()
        if column is not None and not _has_column(source, column)
    ]
    chosen = {use: column for use, column in asked.items() if column is not None}
    if "image" not in chosen:
        if len(source.image_columns) == 1:
            chosen["image"] = source.image_columns[0]
        else:
            problems.append(f"{len(source.image_columns)} columns hold images; name the one with --image_column")
    if captions and "caption" not in chosen:
        found = [column for column in CAPTION_COLUMNS if column in source.columns]
        if found:
            chosen["caption"] = found[0]
        elif "tags" not in chosen:
            problems.append(
                f"no column is called {' or '.join(CAPTION_COLUMNS)}; name one with --caption_column or --tags_column, "
                "or give --no_captions"
            )
    if problems:
        raise ValueError(f"{source.name}: {'; '.join(problems)}. The columns are: {source.described_columns}")
    return chosen


def _has_column(source: Source, column: str) -> bool:
    return column in source.columns or column.partition(".")[0] in source.columns


def value_at(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column, or of a field in it (``json.caption``); None where it is not there."""
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _check_archives(paths: Sequence[Path]) -> None:
    """Raises ValueError naming the .tar files without their end, which would be read as shorter ones in silence."""
    problems = []
    for path in paths:
        if path.suffix.lower() != ".tar":
            continue
        with open(path, "rb") as stream:
            stream.seek(max(0, path.stat().st_size - len(TAR_END)))
            if stream.read() != TAR_END:
                problems.append(f"{path}: the archive is cut short, or is none: its end is missing")
    raise_if_any(problems, "the archives")


def _file_fingerprint(path: Path) -> str:
    """A hash of the names, sizes and times of a file, or of all files below a folder."""
    digest = hashlib.sha256()
    for file in sorted(file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()):
        stat = file.stat()
        digest.update(f"{file.relative_to(path.parent)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="replace"))
    return digest.hexdigest()


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Whatever goes wrong while data are read becomes a ValueError that names them."""
    try:
        yield
    except GeneratorExit:
        raise
    except Exception as error:  # the library passes on those of a dozen others (Arrow, tar, network, files)
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise ValueError(
            f"{name}: cannot be read: {reason} ({type(error).__name__}). Hub names look like owner/name; HF_ENDPOINT, "
            "HF_HUB_OFFLINE and HF_TOKEN are obeyed"
        ) from error
