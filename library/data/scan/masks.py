"""Masks of the loss from a folder of their own (conditioning_data_dir): which mask belongs to which image.

A mask has its image's file name, or the same name with another ending. White is trained, black is not.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from library.data.buckets import Size
from library.data.scan.image_files import list_folder


class MaskFolder:
    """The masks of one folder."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError when the folder is missing or cannot be listed."""
        self.folder = folder
        self._masks: dict[str, list[Path]] = defaultdict(list)
        for path in list_folder(folder).images:
            self._masks[path.stem].append(path)

    def find(self, image: Path) -> Path | None:
        """The mask of an image, None when there is none. Raises ValueError when several files could be it."""
        masks = self._masks.get(image.stem, [])
        same_name = [mask for mask in masks if mask.name == image.name]
        if same_name or len(masks) < 2:
            return next(iter(same_name or masks), None)
        names = ", ".join(mask.name for mask in masks)
        raise ValueError(f"{image}: several masks in {str(self.folder)!r} have its name ({names}); keep one")

    def without_image(self, images: Sequence[Path]) -> list[str]:
        """Names of the masks that belong to none of these images."""
        stems = {image.stem for image in images}
        return [mask.name for stem, masks in self._masks.items() if stem not in stems for mask in masks]


def mask_size_problem(image: Size, mask: Size) -> str | None:
    """Why a mask of this size does not fit its image; None when it does: the same shape, whatever its scale.

    Sizes are (width, height) in pixels; a side may be off by the pixel that rounding takes.
    """
    scale = mask[0] / image[0]
    if abs(image[1] * scale - mask[1]) <= max(1.0, scale):
        return None
    return f"the mask has {mask[0]} x {mask[1]} pixels and the image {image[0]} x {image[1]}, which is another shape"
