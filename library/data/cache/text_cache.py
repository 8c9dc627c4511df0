"""What the text encoders give for captions, cached under kohya's file names and keys, with a fingerprint beside."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from library.data.batch import TextArrays
from library.data.bucketed import PlacedImage
from library.data.cache.cache_names import cache_stems, text_outputs_name
from library.data.cache.cache_store import Arrays, CacheItem, Store
from library.data.cache.fingerprint import FINGERPRINT, MadeFrom, check_fingerprint, make_fingerprint
from library.data.text.captions import CaptionMoment, process_caption
from library.settings.problems import raise_if_any

MAX_BYTES = 1 << 24
"""Of one file: 225 tokens of two text encoders take 2 MB."""

Key = tuple[Path, str]
"""Which text: image and caption. In memory every caption is kept once, on disk every image has its file."""


@dataclass(frozen=True)
class TextEncoders:
    """The text encoders, as far as their outputs depend on them."""

    digest: str
    """Of their weights as they are used: text_projection in one orientation or the other."""
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    """Name and shape of each array that they give for a caption."""
    dtype: str
    """Type that they compute in: float32, float16 or bfloat16."""
    tokens: int
    """Content tokens of a caption: 75, 150 or 225."""
    weighted: bool = False
    """Whether weights in captions count (--weighted_captions)."""
    ending: str = ""
    """Of the cache files' names."""


@dataclass(frozen=True, eq=False)
class TextItem(CacheItem[TextArrays]):
    """The outputs for the caption of one image; items are told apart by being different objects."""

    caption: str
    encoders: TextEncoders
    file: Path
    made_from: MadeFrom = field(repr=False)
    name: str = "text"
    max_bytes: int = MAX_BYTES

    def pack(self, entry: TextArrays, others: Mapping[str, np.ndarray]) -> Arrays:
        """See CacheItem; nothing else is kept in such a file."""
        return {**entry, FINGERPRINT: make_fingerprint(self.made_from, entry)}

    def unpack(self, arrays: Mapping[str, np.ndarray], trusting: bool) -> TextArrays:
        """See CacheItem."""
        for key, shape in self.encoders.arrays:
            if key not in arrays:
                raise ValueError(f"it has no {key}")
            array = arrays[key]
            if array.shape != shape or array.dtype.kind != "f":
                raise ValueError(f"{key} is {array.dtype} {list(array.shape)}, not numbers {list(shape)}")
            if not np.isfinite(array).all():
                raise ValueError(f"{key} holds values that are not numbers (NaN or infinite)")
        found = {key: arrays[key] for key, _ in self.encoders.arrays}
        if not trusting:
            check_fingerprint(arrays.get(FINGERPRINT), self.made_from, found)
        return found

    def check(self, entry: TextArrays) -> None:
        """See CacheItem."""
        if not all(np.isfinite(array).all() for array in entry.values()):
            raise ValueError(
                f"{self.file.parent}: the text encoders give outputs that are not numbers for the caption "
                f"{self.caption!r}. Is the base model whole, and does --mixed_precision suit it?"
            )


class TextCache:
    """The text encoders' outputs for a run's captions."""

    def __init__(self, items: Mapping[Key, TextItem], store: Store[TextItem, TextArrays]) -> None:
        self.items = items
        self.store = store

    def batch(self, images: Sequence[PlacedImage], captions: Sequence[str]) -> TextArrays:
        """For several images with these captions; see ``outputs``."""
        texts = [self.outputs(image, caption) for image, caption in zip(images, captions, strict=True)]
        return {name: np.stack([text[name] for text in texts]) for name in texts[0]}

    def outputs(self, image: PlacedImage, caption: str) -> TextArrays:
        """For an image with this caption. Raises ValueError, naming the file, when it cannot be read any more."""
        return self.store.get(self.items[image.path, caption])


def fixed_caption(image: PlacedImage) -> str:
    """The caption of an image whose subset draws nothing at random (see settings.cache_checks)."""
    return process_caption(image.caption, image.subset, CaptionMoment(), random.Random(0))


def text_items(images: Iterable[PlacedImage], encoders: TextEncoders, on_disk: bool) -> dict[Key, TextItem]:
    """What has to be cached for these images, in their order.

    Raises ValueError where one file would have to hold two captions.
    """
    keys = list(dict.fromkeys((image.path, fixed_caption(image)) for image in images))
    stems = cache_stems(path for path, _ in keys)
    by_caption: dict[str, TextItem] = {}
    items = {}
    for path, caption in keys:
        file = path.with_name(text_outputs_name(stems[path], encoders.ending))
        item = TextItem(caption, encoders, file, _made_from(caption, encoders))
        items[path, caption] = item if on_disk else by_caption.setdefault(caption, item)
    twice = [path for path, count in Counter(path for path, _ in keys).items() if count > 1]
    if on_disk:
        raise_if_any(
            [
                f"{path}: it has several captions in this run, and a file holds one: give its subsets the same caption "
                "settings, or use --cache_text_encoder_outputs without --cache_text_encoder_outputs_to_disk"
                for path in twice
            ],
            "caching text-encoder outputs",
        )
    return items


def _made_from(caption: str, encoders: TextEncoders) -> MadeFrom:
    return {
        "kind": "text",
        "caption": caption,
        "text_encoders": encoders.digest,
        "dtype": encoders.dtype,
        "max_token_length": encoders.tokens,
        "weighted_captions": encoders.weighted,
    }
