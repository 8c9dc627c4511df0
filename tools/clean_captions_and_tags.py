"""Tidy the captions and tags of a metadata file: blanks for underscores, no rating, no contradictions between persons.

python tools/clean_captions_and_tags.py set.json set_clean.json
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from library.curation.caption_cleaning import clean_caption, clean_tags, tags_behind_rating
from library.curation.metadata_table import Table, check_table_name, load_table, save_table
from library.settings.counted import counted
from library.settings.problems import raise_if_any
from tools.folder_options import exit_status

CLEANERS = (("tags", clean_tags), ("caption", clean_caption))


def build_parser() -> argparse.ArgumentParser:
    """The command line; three files are the original's old form, with a folder first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="JSON", help="in_json and out_json; they may be the same")
    parser.add_argument("--debug", action="store_true", help="print every text that changes, before and after")
    return parser


def input_and_output(files: Sequence[str]) -> tuple[Path, Path]:
    """The two metadata files. Raises ValueError for another number of names."""
    if len(files) == 3:
        print(f"the folder {files[0]} is not needed and not looked at; all entries of {files[1]} are cleaned")
        files = files[1:]
    if len(files) != 2:
        raise ValueError(f"give the metadata file to read and the one to write; there are {len(files)} names")
    return Path(files[0]), Path(files[1])


def clean_table(table: Table, *, debug: bool) -> None:
    """Clean all texts of a table in place; say how many changed and what was lost.

    Raises ValueError naming every entry whose text is no text; then nothing is changed.
    """
    texts = [(key, name, clean) for key in table for name, clean in CLEANERS if table[key].get(name) is not None]
    wrong = [(key, name) for key, name, _ in texts if not isinstance(table[key][name], str)]
    raise_if_any([f"{key!r}: {name} has to be text, not {table[key][name]!r}" for key, name in wrong], "the metadata")
    changed = dict.fromkeys(("tags", "caption"), 0)
    for key, name, clean in texts:
        before = table[key][name]
        after = table[key][name] = clean(before)
        changed[name] += before != after
        if debug and before != after:
            print(f"{key}: {name}\n  from: {before}\n  to:   {after}")
        if name == "tags" and (lost := tags_behind_rating(before)):
            print(f"{key}: what stands behind the rating was dropped with it: {lost}")
    for name, count in changed.items():
        print(
            f"{name}: {sum(n == name for _, n, _ in texts)} of {counted(len(table), 'entry', 'entries')} with them, "
            f"{count} changed"
        )


def clean_file(args: argparse.Namespace) -> None:
    """Read, clean, write. Raises ValueError."""
    source, target = input_and_output(args.files)
    check_table_name(target)
    table = load_table(source)
    clean_table(table, debug=args.debug)
    save_table(target, table)
    print(f"wrote {target}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    return exit_status(lambda: clean_file(args))


if __name__ == "__main__":
    sys.exit(main())
