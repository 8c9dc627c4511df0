"""What the text encoders give for captions, cached under kohya's file names and keys, with a fingerprint beside."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from library.data.batch import EncodedText
from library.data.bucketed import PlacedImage
from library.data.cache.cache_names import cache_stems, text_outputs_name
from library.data.cache.cache_store import Arrays, CacheItem, Store
from library.data.cache.fingerprint import FINGERPRINT, MadeFrom, check_fingerprint, make_fingerprint
from library.data.text.captions import CaptionMoment, process_caption
from library.settings.problems import raise_if_any

HIDDEN1, HIDDEN2, POOLED = "hidden_state1", "hidden_state2", "pool2"
SEALED = (HIDDEN1, HIDDEN2, POOLED)
MAX_BYTES = 1 << 24
"""Of one file: 225 tokens of real SDXL take 2 MB."""

Key = tuple[Path, str]
"""Which text: image and caption. In memory every caption is kept once, on disk every image has its file."""


@dataclass(frozen=True)
class TextEncoders:
    """The text encoders, as far as their outputs depend on them."""

    digest: str
    """Of their weights as they are used: text_projection in one orientation or the other."""
    widths: tuple[int, int]
    """Of the two encoders' hidden states."""
    dtype: str
    """Type that they compute in: float32, float16 or bfloat16."""
    tokens: int
    """Content tokens of a caption: 75, 150 or 225."""
    weighted: bool = False
    """Whether weights in captions count (--weighted_captions)."""


@dataclass(frozen=True, eq=False)
class TextItem(CacheItem[EncodedText]):
    """The outputs for the caption of one image; items are told apart by being different objects."""

    caption: str
    encoders: TextEncoders
    file: Path
    made_from: MadeFrom = field(repr=False)
    name: str = "text"
    max_bytes: int = MAX_BYTES

    def pack(self, entry: EncodedText, others: Mapping[str, np.ndarray]) -> Arrays:
        """See CacheItem; nothing else is kept in such a file."""
        own = {HIDDEN1: entry.hidden1, HIDDEN2: entry.hidden2, POOLED: entry.pooled}
        return {**own, FINGERPRINT: make_fingerprint(self.made_from, own)}

    def unpack(self, arrays: Mapping[str, np.ndarray], trusting: bool) -> EncodedText:
        """See CacheItem."""
        length, (width1, width2) = self.encoders.tokens + 2, self.encoders.widths
        for key, shape in ((HIDDEN1, (length, width1)), (HIDDEN2, (length, width2)), (POOLED, (width2,))):
            if key not in arrays:
                raise ValueError(f"it has no {key}")
            array = arrays[key]
            if array.shape != shape or array.dtype.kind != "f":
                raise ValueError(f"{key} is {array.dtype} {list(array.shape)}, not numbers {list(shape)}")
            if not np.isfinite(array).all():
                raise ValueError(f"{key} holds values that are not numbers (NaN or infinite)")
        if not trusting:
            check_fingerprint(arrays.get(FINGERPRINT), self.made_from, {key: arrays[key] for key in SEALED})
        return EncodedText(arrays[HIDDEN1], arrays[HIDDEN2], arrays[POOLED])

    def check(self, entry: EncodedText) -> None:
        """See CacheItem."""
        if not all(np.isfinite(array).all() for array in (entry.hidden1, entry.hidden2, entry.pooled)):
            raise ValueError(
                f"{self.file.parent}: the text encoders give outputs that are not numbers for the caption "
                f"{self.caption!r}. Is the base model whole, and does --mixed_precision suit it?"
            )


class TextCache:
    """The text encoders' outputs for a run's captions."""

    def __init__(self, items: Mapping[Key, TextItem], store: Store[TextItem, EncodedText]) -> None:
        self.items = items
        self.store = store

    def batch(self, images: Sequence[PlacedImage], captions: Sequence[str]) -> EncodedText:
        """For several images with these captions; see ``outputs``."""
        texts = [self.outputs(image, caption) for image, caption in zip(images, captions, strict=True)]
        return EncodedText(
            np.stack([text.hidden1 for text in texts]),
            np.stack([text.hidden2 for text in texts]),
            np.stack([text.pooled for text in texts]),
        )

    def outputs(self, image: PlacedImage, caption: str) -> EncodedText:
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
        file = path.with_name(text_outputs_name(stems[path]))
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
