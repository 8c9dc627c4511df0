"""Which files of a folder are images, and whether each of them can be read."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from library.data.buckets import Size
from library.data.image_util import check_image, readable_formats

# file ending: Pillow's name of its format
_ENDINGS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".avif": "AVIF",
    ".jxl": "JXL",
}


def image_endings() -> tuple[str, ...]:
    """File endings, in lower case with their dot, of the images that can be read here."""
    formats = readable_formats()
    return tuple(ending for ending, name in _ENDINGS.items() if name in formats)


@dataclass
class FolderListing:
    """The plain files of one folder."""

    images: list[Path] = field(default_factory=list)
    """Images by their ending, sorted by name."""

    names: frozenset[str] = frozenset()
    """Names of all files."""

    unreadable: list[str] = field(default_factory=list)
    """Images of a known format that the installed Pillow cannot open."""


def list_folder(folder: Path) -> FolderListing:
    """Images and other files directly in a folder; endings are compared without case.

    Raises ValueError when the folder is missing, is no folder, or cannot be listed.
    """
    if not folder.exists():
        raise ValueError(f"the folder {str(folder)!r} does not exist (paths are relative to {os.getcwd()!r})")
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_file())
    except OSError as error:
        raise ValueError(f"the folder {str(folder)!r} cannot be listed: {error.strerror}") from error
    endings = image_endings()
    listing = FolderListing(names=frozenset(names))
    for name in names:
        ending = os.path.splitext(name)[1].lower()
        if ending in endings:
            listing.images.append(folder / name)
        elif ending in _ENDINGS:
            listing.unreadable.append(name)
    return listing


def check_images(paths: Iterable[Path], bad: dict[Path, str], notes: list[str]) -> dict[Path, Size]:
    """Decode every image once, on all cores. Returns the upright sizes.

    Images that cannot be read are added to `bad`, with a line that says why; what should be known of others to `notes`.
    """

    def size_or_reason(path: Path) -> tuple[Size | str, list[str]]:
        own_notes: list[str] = []
        try:
            return check_image(path, own_notes), own_notes
        except ValueError as error:
            return str(error), own_notes

    unique = list(dict.fromkeys(paths))
    sizes: dict[Path, Size] = {}
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for path, (result, own_notes) in zip(unique, pool.map(size_or_reason, unique), strict=True):
            notes += own_notes
            if isinstance(result, str):
                bad[path] = result
            else:
                sizes[path] = result
    return sizes
