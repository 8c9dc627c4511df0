"""The index of a folder: a hint that holds as long as size and times of a file are what they were."""

import os
import time
from pathlib import Path

import pytest

from library.data.cache import cache_index
from library.data.cache.cache_index import INDEX_NAME, FolderIndex, file_digest
from library.files import user_cache


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as settled at once."""
    monkeypatch.setattr(user_cache, "SETTLED_NS", -1)
    path = tmp_path / "a.png"
    path.write_bytes(b"pixels")
    os.utime(path, ns=(0, 0))
    return path


def test_an_image_is_opened_once(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = FolderIndex(image.parent)
    digest = index.image_digest(image)
    assert digest == file_digest(image)
    index.save()
    monkeypatch.setattr(cache_index, "file_digest", lambda _: pytest.fail("opened again"))
    assert FolderIndex(image.parent).image_digest(image) == digest


def test_an_image_written_just_now_is_not_remembered(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may change again within what the file system's clock can tell."""
    monkeypatch.undo()
    index = FolderIndex(image.parent)
    index.image_digest(image)
    monkeypatch.setattr(cache_index, "file_digest", lambda _: "opened again")
    assert index.image_digest(image) == "opened again"


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_changed_image_is_opened_again(image: Path, change: str) -> None:
    index = FolderIndex(image.parent)
    before = index.image_digest(image)
    index.save()
    image.write_bytes(b"pixelx" if change == "time" else b"more pixels")
    os.utime(image, ns=(0, 1 if change == "time" else 0))
    assert FolderIndex(image.parent).image_digest(image) != before


def test_exchanged_images_are_opened_again(image: Path) -> None:
    """An archive may give all of its files one time, and pictures without compression are of one size."""
    other = image.with_name("b.png")
    other.write_bytes(b"others")
    os.utime(other, ns=(0, 0))
    index = FolderIndex(image.parent)
    digests = index.image_digest(image), index.image_digest(other)
    index.save()
    time.sleep(0.02)  # a tick of the file system's clock
    between = image.with_name("c.png")
    image.rename(between)
    other.rename(image)
    between.rename(other)
    again = FolderIndex(image.parent)
    assert (again.image_digest(other), again.image_digest(image)) == digests


def test_good_entries_are_of_the_file_as_it_was(image: Path) -> None:
    index = FolderIndex(image.parent)
    index.note_good(image, "8x8", "vae 1")
    index.note_good(image, "16x16", "vae 1")
    index.save()
    assert FolderIndex(image.parent).good_entries(image) == {"8x8": "vae 1", "16x16": "vae 1"}
    image.write_bytes(b"other")
    again = FolderIndex(image.parent)
    assert again.good_entries(image) == {}
    again.note_good(image, "8x8", "vae 2")
    assert again.good_entries(image) == {"8x8": "vae 2"}


def test_what_another_process_wrote_stays_and_what_is_gone_goes(image: Path) -> None:
    other = image.with_name("b.png")
    other.write_bytes(b"b")
    ours, theirs = FolderIndex(image.parent), FolderIndex(image.parent)
    ours.note_good(image, "8x8", "vae")
    theirs.note_good(other, "8x8", "vae")
    ours.save()
    theirs.save()
    assert FolderIndex(image.parent).good_entries(image) == {"8x8": "vae"}
    image.unlink()
    theirs.note_good(other, "9x9", "vae")
    theirs.save()
    assert '"a.png"' not in (other.parent / INDEX_NAME).read_text()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 1}', '{"version": 2, "images": [], "entries": {}}', "[" * 9999]
)
def test_a_damaged_index_is_an_empty_one(image: Path, text: str) -> None:
    (image.parent / INDEX_NAME).write_text(text)
    index = FolderIndex(image.parent)
    assert index.good_entries(image) == {}
    assert index.image_digest(image) == file_digest(image)
    index.save()
    assert INDEX_NAME in {path.name for path in image.parent.iterdir()}
    assert FolderIndex(image.parent).image_digest(image) == file_digest(image)


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gone.png"):
        FolderIndex(tmp_path).image_digest(tmp_path / "gone.png")
