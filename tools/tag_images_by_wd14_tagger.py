"""Write the tags of images with a WD14 tagger (an ONNX model in a folder, or of a hub name).

python tools/tag_images_by_wd14_tagger.py FOLDER --repo_id FOLDER_OR_HUB_NAME --remove_underscore
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from library.curation.image_tree import ImageTree, image_key, same_names
from library.curation.metadata_table import LINES, Table, check_table_name, save_table
from library.curation.tagger_tags import (
    CATEGORIES,
    ONE_OF,
    TagChoice,
    TaggerTag,
    TagSpelling,
    choose_tags,
    parse_replacements,
    spell_tags,
    unknown_tags,
)
from library.data.images.image_util import load_rgb
from library.data.text.captions import read_caption_file
from library.files.whole_file import write_whole_bytes
from library.settings.counted import counted
from library.settings.problems import raise_if_any
from tools.folder_options import add_folder_options, exit_status, found_images
from tools.wd14_model import Tagger, find_model

WITH_THRESHOLD = tuple(category for category in CATEGORIES if category not in ONE_OF)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_folder_options(parser, ".txt")
    _add_model_options(parser)
    _add_choice_options(parser)
    add = parser.add_argument
    add("--output_path", type=Path, help="one metadata file (.json or .jsonl) instead of a text file for each image")
    add("--append_tags", action="store_true", help="keep the tags of existing text files, add those they lack")
    add("--caption_separator", default=", ", help="between tags, with its blank (default '%(default)s')")
    add("--frequency_tags", action="store_true", help="print how often each tag was written")
    return parser


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--repo_id",
        default="SmilingWolf/wd-v1-4-convnext-tagger-v2",
        help="folder with the model and its list of tags, or a hub name (default %(default)s)",
    )
    add("--model_dir", type=Path, default=Path("wd14_tagger_model"), help="where fetched models are kept")
    add("--force_download", action="store_true", help="fetch the model again")
    add("--onnx", action="store_true", help="changes nothing: models are always run by onnxruntime here")
    add("--batch_size", type=int, default=1, help="images at once (default 1)")
    add("--max_data_loader_n_workers", type=int, help="threads that read images (default: one for each core)")


def _add_choice_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--thresh", type=float, default=0.35, help="smallest probability of a tag that is written (default 0.35)")
    for category in WITH_THRESHOLD:
        add(f"--{category}_threshold", type=float, help=f"the same for {category} tags; above 1 there are none")
    for category in ONE_OF:
        group = parser.add_mutually_exclusive_group()
        for option, place in ((f"--use_{category}_tags", "first"), (f"--use_{category}_tags_as_last_tag", "last")):
            group.add_argument(
                option, dest=f"{category}_place", action="store_const", const=place, help=f"{category} as {place} tag"
            )
    add("--remove_underscore", action="store_true", help="blanks for underscores in tags of more than 3 characters")
    add("--character_tag_expand", action="store_true", help="name_(series) as two tags")
    add("--character_tags_first", action="store_true", help="characters before the other tags")
    add("--undesired_tags", default="", help="never written; separated by the caption separator")
    add("--always_first_tags", default="", help="to the front where an image has them, in this order")
    add("--tag_replacement", help=r"OLD,NEW;OLD,NEW; write \, and \; for these characters in a tag")


def split_tags(text: str, separator: str) -> list[str]:
    """The tags of a text, stripped, without empty ones."""
    parts = text.replace("\n", separator).split(separator.strip() or separator)
    return [part.strip() for part in parts if part.strip()]


def choice_of(args: argparse.Namespace, *, by_probability: bool) -> TagChoice:
    """Which tags to write, out of the command line."""
    limits = {category: getattr(args, f"{category}_threshold") for category in WITH_THRESHOLD}
    return TagChoice(
        thresholds={category: args.thresh if limit is None else limit for category, limit in limits.items()},
        places={category: place for category in ONE_OF if (place := getattr(args, f"{category}_place"))},
        character_tags_first=args.character_tags_first,
        always_first=split_tags(args.always_first_tags, args.caption_separator),
        undesired=split_tags(args.undesired_tags, args.caption_separator),
        by_probability=by_probability,
    )


def notes(args: argparse.Namespace, choice: TagChoice, tags: Sequence[TaggerTag]) -> Iterator[str]:
    """What of the options has no effect with this model."""
    asked = [*choice.places, *(name for name in WITH_THRESHOLD if getattr(args, f"{name}_threshold") is not None)]
    have = {tag.category for tag in tags}
    yield from (f"this model has no {category} tags" for category in asked if category not in have)
    yield from (f"--undesired_tags: {line}" for line in unknown_tags(choice.undesired, tags))
    yield from (f"--always_first_tags: {line}" for line in unknown_tags(choice.always_first, tags))


@dataclass
class Written:
    """What became of the images."""

    table: Table = field(default_factory=dict)
    """Entries of --output_path."""
    counts: Counter[str] = field(default_factory=Counter)
    overwritten: int = 0
    """Text files that had another text."""
    problems: list[str] = field(default_factory=list)


def read_batches(images: Sequence[Path], size: int, tagger: Tagger, threads: int | None) -> Iterator[list[Any]]:
    """Batches of (path, upright size, picture for the model), or (path, reason, None); one batch is read ahead."""

    def read(path: Path) -> tuple[Path, Any, np.ndarray | None]:
        try:
            image = load_rgb(path)
        except ValueError as error:
            return path, str(error), None
        return path, [image.shape[1], image.shape[0]], tagger.prepare(image)

    with ThreadPoolExecutor(max_workers=(os.cpu_count() or 1) if threads is None else max(1, threads)) as pool:
        ahead: list[Future[Any]] = []
        for start in range(0, len(images), size):
            ready, ahead = ahead, [pool.submit(read, path) for path in images[start : start + size]]
            if ready:
                yield [future.result() for future in ready]
        yield [future.result() for future in ahead]


def write_tags(path: Path, tags: list[str], size: list[int], args: argparse.Namespace, written: Written) -> None:
    """Put the tags of one image where they belong. Raises ValueError when they cannot be read or written."""
    text_path = path.with_name(path.stem + "." + args.caption_extension.removeprefix("."))
    if args.append_tags and text_path.is_file():
        before = split_tags(read_caption_file(text_path, all_lines=True), args.caption_separator)
        tags = list(dict.fromkeys([*before, *tags]))
    text = args.caption_separator.join(tags)
    if args.output_path:
        name = "caption" if args.output_path.suffix == LINES else "tags"
        key = image_key(path, args.train_data_dir, full_path=True)
        written.table[key] = {name: text, "image_size": size}
    else:
        data = f"{text}\n".encode()
        written.overwritten += text_path.is_file() and text_path.read_bytes() != data
        write_whole_bytes(text_path, data)
    written.counts.update(tags)
    if args.debug:
        tqdm.write(f"{path}: {text}")


def tag_images(tree: ImageTree, tagger: Tagger, choice: TagChoice, args: argparse.Namespace) -> Written:
    """Tag and write all images; those that fail are told in the result."""
    written = Written()
    size = tagger.batch_size or args.batch_size
    with tqdm(total=len(tree.images), disable=None, unit="image") as bar:
        for batch in read_batches(tree.images, size, tagger, args.max_data_loader_n_workers):
            bar.update(len(batch))
            written.problems += [reason for _, reason, picture in batch if picture is None]
            good = [entry for entry in batch if entry[2] is not None]
            found = tagger.probabilities([picture for _, _, picture in good]) if good else []
            for (path, image_size, _), row in zip(good, found, strict=True):
                try:
                    write_tags(path, choose_tags(row, tagger.tags, choice), image_size, args, written)
                except (ValueError, OSError) as error:
                    written.problems.append(str(error))
    return written


def check_options(args: argparse.Namespace) -> None:
    """Raises ValueError with everything that can be seen to be wrong before the model is loaded."""
    problems = [
        f"--{name} is {value}; it has to be {least} or more"
        for name, least in (("batch_size", 1), ("max_data_loader_n_workers", 0))
        if (value := getattr(args, name)) is not None and value < least
    ]
    if not args.caption_separator.strip():
        problems.append("--caption_separator has to hold more than blanks, or tags could not be told apart")
    raise_if_any(problems, "the options")
    if args.output_path:
        check_table_name(args.output_path)


def run(args: argparse.Namespace) -> None:
    """Tag a folder. Raises ValueError: wrong options before anything is written, unreadable images at the end."""
    check_options(args)
    spelling = TagSpelling(
        remove_underscore=args.remove_underscore,
        character_tag_expand=args.character_tag_expand,
        replacements=parse_replacements(args.tag_replacement) if args.tag_replacement else {},
    )
    tree = found_images(args.train_data_dir, recursive=args.recursive)
    if not args.output_path:
        raise_if_any(
            [f"{', '.join(map(str, group))}: one text file for both" for group in same_names(tree.images)],
            f"the images of {args.train_data_dir} (rename them, or use --output_path)",
        )
    files = find_model(args.repo_id, args.model_dir, force_download=args.force_download)
    tagger = Tagger(files)
    tagger.tags = spell_tags(tagger.tags, spelling)
    choice = choice_of(args, by_probability=files.gives_logits)
    for line in notes(args, choice, tagger.tags):
        print(line)
    if tagger.batch_size not in (None, args.batch_size):
        print(f"this model takes batches of {tagger.batch_size}, not {args.batch_size}")
    report(tag_images(tree, tagger, choice, args), len(tree.images), args)


def report(written: Written, count: int, args: argparse.Namespace) -> None:
    """Write --output_path and say what was done. Raises ValueError naming the images that failed."""
    if args.output_path:
        save_table(args.output_path, written.table)
    if args.frequency_tags:
        print("\n".join(f"{tag}: {number}" for tag, number in written.counts.most_common()))
    where = args.output_path or f"{args.caption_extension} files ({written.overwritten} had other text before)"
    print(f"tags of {counted(count - len(written.problems), 'image')} written to {where}")
    raise_if_any(written.problems, f"the images of {args.train_data_dir}; all others were tagged")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    return exit_status(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
