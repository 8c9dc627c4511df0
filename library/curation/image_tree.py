"""Images of a folder and of the folders below it, and the keys under which metadata files hold them."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from library.data.scan.image_files import image_endings, list_folder


@dataclass
class ImageTree:
    """What was found below one folder."""

    root: Path
    images: list[Path] = field(default_factory=list)
    """Paths that start with `root`, sorted folder by folder."""

    unreadable: list[Path] = field(default_factory=list)
    """Images in formats that are not read here, by their ending."""


def find_images(root: Path, *, recursive: bool) -> ImageTree:
    """The images of a folder and, with `recursive`, of all folders below it.

    Links to folders are followed, each folder is visited once. Raises ValueError when a folder is missing or cannot be
    listed, or when there is no image at all.
    """
    tree = ImageTree(root)
    for folder in _folders(root) if recursive else [root]:
        listing = list_folder(folder)
        tree.images += listing.images
        tree.unreadable += [folder / name for name in listing.unreadable]
    if not tree.images:
        below = " and the folders below it" if recursive else ""
        raise ValueError(f"no images ({', '.join(image_endings())}) in {str(root)!r}{below}")
    return tree


def _folders(root: Path) -> Iterator[Path]:
    seen = set()

    def refuse(error: OSError) -> None:
        raise ValueError(f"the folder {error.filename!r} cannot be listed: {error.strerror}") from error

    list_folder(root)  # its message when there is no such folder
    for name, below, _ in os.walk(root, followlinks=True, onerror=refuse):
        identity = os.stat(name)
        if (identity.st_dev, identity.st_ino) in seen:
            below.clear()
            continue
        seen.add((identity.st_dev, identity.st_ino))
        below.sort()
        yield Path(name)


def same_names(images: Sequence[Path]) -> list[list[Path]]:
    """Groups of images whose paths differ in their ending only: one text file belongs to all of a group."""
    groups: dict[Path, list[Path]] = {}
    for image in images:
        groups.setdefault(image.with_suffix(""), []).append(image)
    return [group for group in groups.values() if len(group) > 1]


def image_key(image: Path, root: Path, *, full_path: bool) -> str:
    """The key of an image in a metadata file: its absolute path, or its path inside `root`, with its ending."""
    return os.path.abspath(image) if full_path else image.relative_to(root).as_posix()


class KeyFinder:
    """The key that a metadata file already has for an image, in any of the forms that are in use."""

    def __init__(self, tree: ImageTree, keys: Mapping[str, object]) -> None:
        """`keys`: what the metadata file holds."""
        self._root = tree.root
        self._keys = keys
        self._shared = {image for group in same_names(tree.images) for image in group}

    def find(self, image: Path) -> str | None:
        """The key, or None when the image has none: its full path, its path inside the folder, either without ending.

        Raises ValueError when the key has no ending and several images have that name.
        """
        inside = image.relative_to(self._root)
        for name in (os.path.abspath(image), str(image), inside.as_posix()):
            if name in self._keys:
                return name
        for path in (Path(os.path.abspath(image)), image, inside):
            name = path.with_suffix("").as_posix()
            if name in self._keys:
                if image in self._shared:
                    raise ValueError(
                        f"the metadata's key {name!r} fits several images, {str(image)!r} among them; "
                        "write it with the ending of the image that is meant"
                    )
                return name
        return None
