"""Turn a Hugging Face data set into a folder of images with metadata JSON and a TOML that trains with it.

python tools/convert_hf_dataset.py OWNER/NAME --output_dir FOLDER [--image_column image] [--caption_column text]
python tools/convert_hf_dataset.py pictures.parquet --output_dir FOLDER
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from library.curation.dataset_import import IMAGE_FORMATS, KEEP, ImportedRow, ImportFolder
from library.settings.counted import counted
from library.settings.problems import raise_if_any
from tools.folder_options import exit_status
from tools.hf_dataset_source import Source, choose_columns, open_source, value_at

MAX_LISTED = 20
USES = ("image", "caption", "tags", "name")
NAME_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".jxl", ".gif", ".tif", ".tiff")
"""Taken off names, since the ending says the format of what is written."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "source",
        help="hub name; folder of images, of parquet files, of WebDataset archives or from save_to_disk; a .parquet or "
        ".tar file",
    )
    add("--output_dir", type=Path, required=True, help="new folder; an interrupted import in it goes on")
    add("--config_name", help="configuration of a data set that has several")
    add("--split", help="part of the data set (default: the only one, or train)")
    add("--revision", help="branch, tag or commit of a hub name")
    add("--image_column", help="column of images (default: the only one)")
    add("--caption_column", help="column of captions; json.caption is the field caption of the column json")
    add("--tags_column", help="column of tags: text, or a list that is joined with commas")
    add("--name_column", help="column that names the image files (default: they get the number of their row)")
    add("--no_captions", action="store_true", help="only the images")
    add("--image_format", choices=IMAGE_FORMATS, default=KEEP, help="keep: the bytes as they are; else re-encoded")
    add("--resolution", type=int, default=1024, help="training resolution for the TOML, in pixels (default 1024)")
    return parser


def image_bytes(value: Any, folders: Sequence[Path]) -> bytes:
    """The encoded picture in a row's image field: bytes, or a file inside one of `folders`.

    Raises ValueError when it holds none, or names a file elsewhere.
    """
    if isinstance(value, bytes):
        return value
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, Mapping) else (None, None)
    if isinstance(data, bytes):
        return data
    if path is None:
        raise ValueError("it has no image")
    place = Path(os.path.abspath(path))  # without .., links as they are: a hub's cache consists of links
    if not any(place.is_relative_to(folder) for folder in folders):
        raise ValueError(f"it names the file {path!r} in place of an image, which is not one of the data set's own")
    try:
        return place.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error


def text_of(value: Any, names: Sequence[str] | None, joiner: str) -> str | None:
    """A text field: text, a class label by its name, a list joined. Raises ValueError for anything else."""
    if value is None:
        return None
    if names is not None and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return joiner.join(part.strip() for part in value if part.strip())
    raise ValueError(f"{value!r:.80} is neither text nor a list of texts")


def import_row(target: ImportFolder, row: Mapping[str, Any], source: Source, columns: Mapping[str, str]) -> ImportedRow:
    """Write one row, or note why it is left out."""
    try:
        data = image_bytes(value_at(row, columns["image"]), source.picture_folders)
        texts = {
            use: text_of(value_at(row, columns[use]), source.class_names(columns[use]), joiner)
            for use, joiner in (("caption", "\n"), ("tags", ", "))
            if use in columns
        }
        name = name_of(value_at(row, columns["name"])) if "name" in columns else None
    except ValueError as error:
        return target.leave_out(str(error))
    return target.add(data, name, texts.get("caption"), texts.get("tags"))


def name_of(value: Any) -> str:
    """The file name in a row, without the ending that an image's own name may have. Raises ValueError when empty."""
    if isinstance(value, Mapping):
        value = Path(value.get("path") or "").name
    text = "" if value is None else str(value)
    if not text:
        raise ValueError("it has no name")
    path = Path(text)
    return text.removesuffix(path.suffix) if path.suffix.lower() in NAME_ENDINGS else text


def convert(args: argparse.Namespace) -> None:
    """Import a data set. Raises ValueError: wrong options before anything is written, rows left out at the end."""
    if args.resolution < 32:
        raise ValueError(f"--resolution is {args.resolution}; it is in pixels, for example 1024")
    if args.output_dir.resolve().is_relative_to(Path(args.source).expanduser().resolve()):
        raise ValueError(f"--output_dir {args.output_dir} is inside the data set; choose another folder")
    if args.no_captions and (args.caption_column or args.tags_column):
        raise ValueError("--no_captions contradicts --caption_column and --tags_column")
    source = open_source(args.source, args.config_name, args.split, args.revision)
    asked = {use: getattr(args, f"{use}_column") for use in USES}
    columns = choose_columns(source, asked, captions=not args.no_captions)
    print(f"{source.name}, split {source.split}: " + ", ".join(f"{use} from {name}" for use, name in columns.items()))
    settings = {
        "source": source.name,
        "config_name": args.config_name,
        "split": source.split,
        "fingerprint": source.fingerprint,
        "columns": columns,
    }
    target = ImportFolder(args.output_dir, settings, args.image_format)
    if target.rows:
        print(f"going on behind row {len(target.rows) - 1}")
    top = {column if column in source.columns else column.partition(".")[0] for column in columns.values()}
    for row in tqdm(source.rows(len(target.rows), sorted(top)), disable=None, unit="row"):
        import_row(target, row, source, columns)
    report(target, target.finish(args.resolution), columns)


def report(target: ImportFolder, config: Path, columns: Mapping[str, str]) -> None:
    """Say what was imported. Raises ValueError naming the rows that were left out."""
    rows = [row for row in target.rows if row.key]
    print(f"{counted(len(rows), 'image')}; the TOML to train with is {config}")
    if "caption" in columns or "tags" in columns:
        empty = sum(not row.caption and not row.tags for row in rows)
        if empty:
            print(f"{empty} of them have neither caption nor tags")
    left_out = [f"row {row.row}: {row.problem}" for row in target.rows if row.problem]
    more = [f"and {len(left_out) - MAX_LISTED} more"] if len(left_out) > MAX_LISTED else []
    raise_if_any(left_out[:MAX_LISTED] + more, f"the rows ({len(left_out)} left out; all others were imported)")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    return exit_status(lambda: convert(args))


if __name__ == "__main__":
    sys.exit(main())
