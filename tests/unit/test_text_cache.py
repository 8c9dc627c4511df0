"""Text-encoder outputs in files: kohya's format both ways, and never those of another caption or encoder."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from library.data.batch import TextArrays
from library.data.bucketed import PlacedImage
from library.data.cache.cache_fill import Filling, fill
from library.data.cache.cache_store import DiskStore, Indexes
from library.data.cache.text_cache import TextCache, TextEncoders, text_items
from tests.unit.caching_help import draw_image, placed


def arrays_of(tokens: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """kohya's keys of SDXL's text outputs, and the shapes here."""
    return ("hidden_state1", (tokens + 2, 6)), ("hidden_state2", (tokens + 2, 10)), ("pool2", (10,))


ENCODERS = TextEncoders("encoders", arrays_of(75), "float32", 75, ending="_te_outputs.npz")


def encoded(caption: str, tokens: int = 75) -> TextArrays:
    values = np.random.default_rng(list(caption.encode())).standard_normal((tokens + 2, 16)).astype(np.float32)
    return {"hidden_state1": values[:, :6], "hidden_state2": values[:, 6:], "pool2": values[0, 6:]}


class Cache:
    """A cache on disk, as a new run sees it."""

    def __init__(self, images: list[PlacedImage], encoders: TextEncoders = ENCODERS, trusting: bool = False) -> None:
        self.items = text_items(images, encoders, on_disk=True)
        self.store = DiskStore(Indexes((image.path.parent for image in images), 2), trusting=trusting)
        self.texts = TextCache(self.items, self.store)
        self.tokens = encoders.tokens

    def fill(self) -> int:
        """Fill it; returns the number of entries made."""

        def encode(captions):
            return [encoded(caption, self.tokens) for caption in captions]

        filling = Filling("text", lambda item: item.caption, encode, lambda item: None, 2, 2)
        return fill(list(self.items.values()), self.store, filling)


@pytest.fixture
def image(tmp_path: Path) -> PlacedImage:
    return replace(placed(draw_image(tmp_path / "a.png")), caption="a red circle")


def why_made_again(cache: Cache, caplog: pytest.LogCaptureFixture) -> str:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert cache.fill() == 1
    (reason,) = (record.getMessage() for record in caplog.records)
    assert "a_te_outputs.npz" in reason
    return reason


def test_kohya_reads_what_is_written(image: PlacedImage) -> None:
    assert Cache([image]).fill() == 1
    with np.load(image.path.with_name("a_te_outputs.npz")) as file:
        for key, expected in encoded(image.caption).items():
            np.testing.assert_array_equal(file[key], expected)
    again = Cache([image])
    assert again.fill() == 0
    np.testing.assert_array_equal(again.texts.outputs(image, image.caption)["pool2"], encoded(image.caption)["pool2"])


def test_kohyas_files_are_read_when_they_are_trusted_and_only_then(image: PlacedImage, caplog) -> None:
    text = encoded("something")
    file = image.path.with_name("a_te_outputs.npz")
    np.savez(file, **{**text, "hidden_state1": text["hidden_state1"].astype(np.float16)})
    trusting = Cache([image], trusting=True)
    assert trusting.fill() == 0
    np.testing.assert_array_equal(trusting.texts.outputs(image, image.caption)["hidden_state2"], text["hidden_state2"])
    assert "no fingerprint" in why_made_again(Cache([image]), caplog)


def test_another_caption_encoder_precision_or_length_is_encoded_again(image: PlacedImage, caplog) -> None:
    Cache([image]).fill()
    other = replace(image, caption="a blue circle")
    assert "different: caption" in why_made_again(Cache([other]), caplog)
    assert "different: text encoders" in why_made_again(Cache([other], replace(ENCODERS, digest="other")), caplog)
    assert "different: dtype" in why_made_again(
        Cache([other], replace(ENCODERS, digest="other", dtype="float16")), caplog
    )
    weighted = replace(ENCODERS, digest="other", dtype="float16", weighted=True)
    assert "different: weighted captions" in why_made_again(Cache([other], weighted), caplog)
    assert "[77, 6]" in why_made_again(Cache([other], replace(ENCODERS, tokens=150, arrays=arrays_of(150))), caplog)


def test_the_caption_is_the_one_that_is_trained(image: PlacedImage) -> None:
    """With prefix, suffix and separators, which kohya's cache leaves out."""
    subset = replace(image.subset, caption_prefix="photo,", caption_suffix="end", secondary_separator=";")
    ((_, caption),) = text_items([replace(image, caption="a;b\nsecond line", subset=subset)], ENCODERS, on_disk=True)
    assert caption == "photo, a,b"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pool2": np.zeros(1280, np.float32)}, "[1280]"),
        ({"hidden_state1": np.full((77, 6), np.nan, np.float32)}, "not numbers"),
        ({"hidden_state2": np.zeros((77, 10), np.int64)}, "int64"),
        ({"hidden_state2": np.array([{}], dtype=object)}, "pickle"),
        ({"pool2": np.ones(10, np.float32)}, "changed by another program"),
    ],
)
def test_a_wrong_file_is_made_again(image: PlacedImage, caplog, change, reason) -> None:
    Cache([image]).fill()
    file = image.path.with_name("a_te_outputs.npz")
    with np.load(file) as arrays:
        np.savez(file, **({key: arrays[key] for key in arrays.files} | change))
    assert reason in why_made_again(Cache([image]), caplog)


def test_one_image_with_two_captions_is_refused_on_disk_only(image: PlacedImage) -> None:
    both = [image, replace(image, caption="another")]
    with pytest.raises(ValueError, match="several captions"):
        text_items(both, ENCODERS, on_disk=True)
    assert len(text_items(both, ENCODERS, on_disk=False)) == 2


def test_in_memory_a_caption_is_kept_once(tmp_path: Path) -> None:
    images = [placed(draw_image(tmp_path / f"{number}.png")) for number in range(3)]
    assert len(set(text_items(images, ENCODERS, on_disk=False).values())) == 1
    assert len(set(text_items(images, ENCODERS, on_disk=True).values())) == 3
