"""Which files of a folder are images, and whether each of them can be read."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from library.data.buckets import Size
from library.data.images.image_util import check_image, readable_formats
from library.data.loader import ordered_map
from library.data.progress import progress
from library.data.scan.image_index import ImageIndex
from library.files.user_cache import FileState, file_state

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
_OTHER_ENDINGS = frozenset({".gif", ".heic", ".heif", ".jfif", ".jp2", ".psd", ".tga", ".tif", ".tiff"})
"""File endings of images in formats that are never read."""


def image_endings() -> tuple[str, ...]:
    """File endings, in lower case with their dot, of the images that can be read here."""
    formats = readable_formats()
    return tuple(ending for ending, name in _ENDINGS.items() if name in formats)


@dataclass
class FolderListing:
    """The plain files of one folder, and links that lead nowhere."""

    images: list[Path] = field(default_factory=list)
    """Images by their ending, without hidden files, sorted by name."""

    names: frozenset[str] = frozenset()
    """Names of all files."""

    unreadable: list[str] = field(default_factory=list)
    """Images in formats that are not read here, by their ending."""


def list_folder(folder: Path) -> FolderListing:
    """Images and other files directly in a folder; endings are compared without case.

    Raises ValueError when the folder is missing, is no folder, or cannot be listed.
    """
    if not folder.exists():
        raise ValueError(f"the folder {str(folder)!r} does not exist (paths are relative to {os.getcwd()!r})")
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if _is_file(entry))
    except OSError as error:
        raise ValueError(f"the folder {str(folder)!r} cannot be listed: {error.strerror}") from error
    endings = image_endings()
    listing = FolderListing(names=frozenset(names))
    for name in names:
        if name.startswith("."):  # hidden, among them the ._a.png that macOS leaves beside a.png; the original too
            continue
        ending = os.path.splitext(name)[1].lower()
        if ending in endings:
            listing.images.append(folder / name)
        elif ending in _ENDINGS or ending in _OTHER_ENDINGS:
            listing.unreadable.append(name)
    return listing


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a plain file, or a link that leads nowhere: whoever reads that learns its name and the reason."""
    return (entry.is_symlink() and not os.path.exists(entry.path)) or entry.is_file()


def check_images(paths: Iterable[Path], bad: dict[Path, str], notes: list[str]) -> dict[Path, Size]:
    """Upright sizes of the images that are whole.

    Every image is decoded once, on all cores; one that was found whole by an earlier start and has not changed since
    is not decoded again. Images that cannot be read are added to `bad`, with a line that says why; what should be known
    of others to `notes`.
    """
    indexes: dict[str, ImageIndex] = {}
    sizes: dict[Path, Size] = {}
    unchecked: list[tuple[Path, FileState]] = []
    for path in dict.fromkeys(paths):
        folder, name = os.path.split(path)
        if folder not in indexes:
            indexes[folder] = ImageIndex(folder)
        try:
            state = file_state(path)
        except OSError as error:
            bad[path] = f"{path}: the image cannot be read: {error.strerror}"
            continue
        size = indexes[folder].size_of(name, state)
        if size is None:
            unchecked.append((path, state))
        else:
            sizes[path] = size
    try:
        found = ordered_map(_check, (path for path, _ in unchecked), os.cpu_count() or 1)
        for (path, state), (result, own_notes) in zip(
            unchecked, progress(found, len(unchecked), "checking images"), strict=True
        ):
            notes += own_notes
            if isinstance(result, str):
                bad[path] = result
                continue
            sizes[path] = result
            if not own_notes:  # what is to be noted of an image is noted at every start
                folder, name = os.path.split(path)
                indexes[folder].add(name, state, result)
    finally:  # also when interrupted: what was checked need not be checked again
        for index in indexes.values():
            index.save()
    return sizes


def _check(path: Path) -> tuple[Size | str, list[str]]:
    """The size or what is wrong, and what should be noted."""
    notes: list[str] = []
    try:
        return check_image(path, notes), notes
    except ValueError as error:
        return str(error), notes
