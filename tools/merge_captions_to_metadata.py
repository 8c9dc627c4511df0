"""Put the captions of text files into a metadata file for fine-tuning.

python tools/merge_captions_to_metadata.py FOLDER set.json [--caption_extension .caption]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from library.curation.metadata_merge import merge_text_files
from library.curation.metadata_table import check_table_name, load_table, save_table
from library.settings.counted import counted
from tools.folder_options import add_folder_options, exit_status, found_images


def build_parser(description: str | None, caption_extension: str) -> argparse.ArgumentParser:
    """The command line of the programs that merge text files."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_folder_options(parser, caption_extension)
    parser.add_argument("out_json", type=Path, help="metadata file to write (.json or .jsonl)")
    parser.add_argument(
        "--in_json", type=Path, help="metadata file to add to; without it out_json, where that is there already"
    )
    parser.add_argument(
        "--full_path",
        action="store_true",
        help="new entries get the image's full path as their key, not its path inside the folder",
    )
    return parser


def merge(args: argparse.Namespace, field: str) -> None:
    """Read the metadata, set a field of every image's entry, write the metadata. Raises ValueError."""
    check_table_name(args.out_json)
    tree = found_images(args.train_data_dir, recursive=args.recursive)
    source = args.in_json or (args.out_json if args.out_json.exists() else None)
    table = load_table(source) if source else {}
    result = merge_text_files(table, tree, field, args.caption_extension, full_path=args.full_path)
    if args.debug:
        print("\n".join(f"{key}: {table[key][field]}" for key in result.keys))
    save_table(args.out_json, table)
    empty = sum(not table[key][field] for key in result.keys)
    print(
        f"{args.out_json}: {counted(len(table), 'entry', 'entries')}, {result.new} of them new; {field} of "
        f"{len(result.keys)} set ({result.overwritten} had another, {empty} are empty)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = build_parser(__doc__, ".caption").parse_args(argv)
    return exit_status(lambda: merge(args, "caption"))


if __name__ == "__main__":
    sys.exit(main())
