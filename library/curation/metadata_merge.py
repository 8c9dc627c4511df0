"""Captions and tags of text files, put into a metadata table."""

from dataclasses import dataclass
from pathlib import Path

from library.curation.image_tree import ImageTree, KeyFinder, image_key
from library.curation.metadata_table import Table
from library.data.text.captions import read_caption_file
from library.settings.problems import raise_if_any


@dataclass
class MergeResult:
    """What a merge did."""

    keys: list[str]
    """One for each image, in the images' order."""

    new: int = 0
    """Images that the table did not have."""

    overwritten: int = 0
    """Entries whose text was another one before."""


def merge_text_files(table: Table, tree: ImageTree, field: str, ending: str, *, full_path: bool) -> MergeResult:
    """Set `field` of every image's entry to the text of the file beside it.

    An image that the table has keeps its key, in whatever form it is; a new one gets `image_key`. Raises ValueError
    with every missing or unreadable text and every doubtful key, and then the table is as it was.
    """
    ending = "." + ending.removeprefix(".")
    finder = KeyFinder(tree, table)
    texts: dict[str, str] = {}
    problems = []
    for image in tree.images:
        try:
            key = finder.find(image) or image_key(image, tree.root, full_path=full_path)
            texts[key] = _text_beside(image, ending)
        except ValueError as error:
            problems.append(str(error))
    raise_if_any(problems, f"the images of {str(tree.root)!r}")
    result = MergeResult(list(texts))
    for key, text in texts.items():
        result.new += key not in table
        result.overwritten += table.get(key, {}).get(field, text) != text
        table.setdefault(key, {})[field] = text
    return result


def _text_beside(image: Path, ending: str) -> str:
    path = image.with_name(image.stem + ending)
    try:
        return read_caption_file(path, all_lines=True)
    except FileNotFoundError:
        raise ValueError(f"{image}: there is no {path.name} beside it; write one (it may be empty)") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
