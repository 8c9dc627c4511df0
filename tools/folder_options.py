"""What the programs over a folder of images have in common: their options, the search, and how they end."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from library.curation.image_tree import ImageTree, find_images
from library.settings.counted import counted


def add_folder_options(parser: argparse.ArgumentParser, caption_extension: str) -> None:
    """The folder, --recursive, --debug, and the ending of caption files with the original's other spelling."""
    parser.add_argument("train_data_dir", type=Path, help="folder of images")
    parser.add_argument("--recursive", action="store_true", help="also the images of all folders below it")
    parser.add_argument(
        "--caption_extension",
        "--caption_extention",
        default=caption_extension,
        help=f"ending of the text file that belongs to an image (default {caption_extension})",
    )
    parser.add_argument("--debug", action="store_true", help="print what is done for every image")


def found_images(folder: Path, *, recursive: bool) -> ImageTree:
    """The images of a folder, with a line that says how many. Raises ValueError when there are none."""
    tree = find_images(folder, recursive=recursive)
    print(f"{counted(len(tree.images), 'image')} in {folder}")
    for path in tree.unreadable:
        print(f"left out, since its format is not read: {path}")
    return tree


def exit_status(program: Callable[[], None]) -> int:
    """Run a program: 0, or 1 after printing what was wrong with the user's input."""
    try:
        program()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
