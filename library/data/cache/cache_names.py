"""Names of cache files: kohya's, wherever these tell two images apart.

kohya names a cache file by its image's name without ending, so a.png and a.jpg share one. Here such images keep their
ending in the name. How the names end is a matter of the model's family.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from library.data.buckets import Size

MAX_NAME_BYTES = 255
"""Longest file name of the usual file systems."""


def cache_stems(images: Iterable[Path]) -> dict[Path, str]:
    """What the names of an image's cache files begin with, different for each image of a folder.

    It is the image's name without ending, or with it where another image of the folder has the same stem, or has that
    stem as its name. Upper and lower case count as the same, since some file systems cannot tell them apart.
    """
    unique = list(dict.fromkeys(images))
    taken = Counter((path.parent, name.casefold()) for path in unique for name in {path.stem, path.name})
    return {path: path.stem if taken[path.parent, path.stem.casefold()] == 1 else path.name for path in unique}


def latents_name(stem: str, image_size: Size, ending: str) -> str:
    """Name of the file with an image's latents; `image_size` are its upright width and height in pixels."""
    return _fitting(stem, f"_{image_size[0]:04d}x{image_size[1]:04d}{ending}")


def text_outputs_name(stem: str, ending: str) -> str:
    """Name of the file with the text-encoder outputs of an image's caption."""
    return _fitting(stem, ending)


def _fitting(stem: str, ending: str) -> str:
    """The name; a stem that would make it too long is cut and told apart by its hash."""
    encoded = os.fsencode(stem)
    room = MAX_NAME_BYTES - len(ending)
    if len(encoded) <= room:
        return stem + ending
    mark = "~" + hashlib.blake2b(encoded, digest_size=8).hexdigest()
    return encoded[: room - len(mark)].decode("utf-8", "ignore") + mark + ending
