"""Make smaller copies of a folder's images, each with at most a given number of pixels; their shape stays.

python tools/resize_images_to_resolution.py FOLDER OTHER --max_resolution 1024x1024,512x512 --copy_associated_files
"""

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from library.curation.image_saving import save_rgb
from library.curation.image_tree import same_names
from library.curation.resize_to_area import fit_within, parse_resolutions
from library.data.images.image_util import INTERPOLATIONS, load_rgb
from library.data.scan.image_files import image_endings, list_folder
from library.files.whole_file import ensure_writable, write_whole_path
from library.settings.counted import counted
from library.settings.problems import raise_if_any
from tools.folder_options import exit_status, found_images


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("src_img_folder", type=Path, help="folder of images")
    parser.add_argument("dst_img_folder", type=Path, help="another folder, made when absent")
    parser.add_argument(
        "--max_resolution",
        default="512x512,384x384,256x256,128x128",
        help="one or several WIDTHxHEIGHT; only their product counts. IMAGE becomes IMAGE+512x512.jpg and so on, each "
        "made from the original (default %(default)s)",
    )
    parser.add_argument(
        "--divisible_by", type=int, default=1, help="cut the sides to multiples of this, in pixels (default 1)"
    )
    parser.add_argument(
        "--interpolation",
        choices=INTERPOLATIONS,
        help="how to resize (default: area, which is right for making images smaller)",
    )
    parser.add_argument("--save_as_png", action="store_true", help="write PNG instead of JPEG of the best quality")
    parser.add_argument(
        "--copy_associated_files",
        action="store_true",
        help="also copy the text and other files named like an image once for each resolution (NAME+512x512.txt)",
    )
    return parser


def resize_one(image: Path, args: argparse.Namespace, areas: Mapping[str, int]) -> str | None:
    """All sizes of one image; what is wrong with it, if anything."""
    ending = ".png" if args.save_as_png else ".jpg"
    try:
        original = load_rgb(image)
        for name, area in areas.items():
            resized = fit_within(original, area, args.divisible_by, args.interpolation)
            target = args.dst_img_folder / f"{image.stem}+{name}{ending}"
            write_whole_path(target, lambda part, resized=resized: save_rgb(part, resized, quality=100))
    except ValueError as error:
        return str(error) if str(image) in str(error) else f"{image}: {error}"
    return None


def copies(folder: Path, names: Sequence[str], stems: set[str], suffixes: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """(file, name of its copy): every other file under its own name, those of an image also with each suffix."""
    for name in sorted(names):
        stem, ending = os.path.splitext(name)
        if ending.lower() in image_endings():
            continue
        yield folder / name, name
        if stem in stems:
            yield from ((folder / name, f"{stem}+{suffix}{ending}") for suffix in suffixes)


def copy_file(source: Path, target: Path) -> str | None:
    """Copy one file whole; what is wrong, if anything."""
    try:
        write_whole_path(target, lambda part: shutil.copyfile(source, part))
    except ValueError as error:
        return f"{source}: {error}"
    return None


def resize_folder(args: argparse.Namespace) -> None:
    """Resize and copy. Raises ValueError: wrong options before anything is written, unreadable files at the end."""
    areas = parse_resolutions(args.max_resolution)
    if args.divisible_by < 1:
        raise ValueError(f"--divisible_by is {args.divisible_by}; it has to be 1 or more")
    if args.dst_img_folder.resolve() == args.src_img_folder.resolve():
        raise ValueError(f"{args.dst_img_folder}: the copies have to go to another folder than the images")
    images = found_images(args.src_img_folder, recursive=False).images
    raise_if_any(
        [f"{', '.join(map(str, group))}: their copies would have one name" for group in same_names(images)],
        f"the images of {args.src_img_folder}",
    )
    ensure_writable(args.dst_img_folder)
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        problems = [text for text in pool.map(lambda image: resize_one(image, args, areas), images) if text]
    done = len(images) - len(problems)
    names = list_folder(args.src_img_folder).names
    stems = {image.stem for image in images} if args.copy_associated_files else set()
    to_copy = list(copies(args.src_img_folder, sorted(names), stems, list(areas)))
    problems += [text for source, name in to_copy if (text := copy_file(source, args.dst_img_folder / name))]
    made, copied = counted(done, "image"), counted(len(to_copy), "other file")
    print(f"{args.dst_img_folder}: {made} in {', '.join(areas)}, {copied} copied")
    raise_if_any(problems, f"the files of {args.src_img_folder}; all others were written")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    return exit_status(lambda: resize_folder(args))


if __name__ == "__main__":
    sys.exit(main())
