"""Images that were found whole once are not decoded again, unless anything about them has changed."""

import json
import os

import pytest
from PIL import Image

from library.data.scan import image_files, image_index
from library.data.scan.image_files import check_images
from library.files import user_cache

LONG_AGO = 1_600_000_000


def old_image(path, size=(20, 10), when=LONG_AGO):
    """An image whose times lie far enough back to be entered."""
    Image.new("RGB", size).save(path)
    os.utime(path, (when, when))
    return path


@pytest.fixture
def decoded(monkeypatch, tmp_path):
    """Names of the images that are decoded from now on; indexes are in a folder of the test's own."""
    names = []

    def check_image(path, notes):
        names.append(path.name)
        return real(path, notes)

    real = image_files.check_image
    monkeypatch.setattr(image_files, "check_image", check_image)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # A file made by a test was changed just now, and the time of that change cannot be set back.
    monkeypatch.setattr(user_cache, "SETTLED_NS", -1)
    return names


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "images"
    path.mkdir()
    return path


def sizes(*paths):
    bad, notes = {}, []
    found = check_images(paths, bad, notes)
    assert bad == {} and notes == []
    return {path.name: size for path, size in found.items()}


def test_the_second_start_decodes_nothing(folder, decoded):
    paths = [old_image(folder / name) for name in ("a.png", "b b.jpg", "\u732b.png", os.fsdecode(b"latin\xe9.png"))]
    first = sizes(*paths)
    assert sorted(decoded) == sorted(path.name for path in paths)
    decoded.clear()
    assert sizes(*paths) == first == dict.fromkeys((path.name for path in paths), (20, 10))
    assert decoded == []


def test_nothing_is_written_beside_the_images(folder, decoded):
    sizes(old_image(folder / "a.png"))
    assert os.listdir(folder) == ["a.png"]


@pytest.mark.parametrize("change", ["content", "mtime", "same size and mtime"])
def test_a_changed_file_is_decoded_again(folder, decoded, change):
    path, other = old_image(folder / "a.png"), old_image(folder / "b.png")
    sizes(path, other)
    decoded.clear()
    if change == "content":
        old_image(path, (30, 40))
    elif change == "mtime":
        os.utime(path, (LONG_AGO + 1, LONG_AGO + 1))
    else:  # only the time of the entry's change tells
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        os.utime(path, (LONG_AGO, LONG_AGO))
    assert sizes(path, other)["a.png"] == ((30, 40) if change == "content" else (20, 10))
    assert decoded == ["a.png"]


def test_a_broken_file_is_found_at_every_start(folder, decoded):
    path, good = old_image(folder / "a.png"), old_image(folder / "b.png")
    path.write_bytes(path.read_bytes()[:40])
    for _ in range(2):
        bad = {}
        assert list(check_images([path, good], bad, [])) == [good]
        assert list(bad) == [path] and "a.png: the image cannot be read" in bad[path]
    assert decoded.count("a.png") == 2 and decoded.count("b.png") == 1


def test_what_is_noted_of_an_image_is_noted_at_every_start(folder, decoded):
    path = folder / "a.png"
    Image.new("RGB", (20, 10)).save(path, icc_profile=b"no profile")
    for _ in range(2):
        notes = []
        assert check_images([path], {}, notes) == {path: (20, 10)}
        assert len(notes) == 1 and "a.png: its colour profile is not used" in notes[0]


def test_an_unreadable_path_is_bad(folder, decoded):
    bad = {}
    assert check_images([folder / "gone.png"], bad, []) == {}
    assert "gone.png: the image cannot be read: No such file" in bad[folder / "gone.png"]


def test_a_file_changed_just_now_is_not_trusted(folder, decoded, monkeypatch):
    monkeypatch.setattr(user_cache, "SETTLED_NS", 2_000_000_000)
    path = old_image(folder / "a.png")
    sizes(path)
    sizes(path)
    assert decoded == ["a.png", "a.png"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"[1]",
        lambda content: json.dumps({**json.loads(content), "checked_by": "another Pillow"}).encode(),
        lambda content: json.dumps({**json.loads(content), "folder": "/elsewhere"}).encode(),
        lambda content: json.dumps({**json.loads(content), "images": {"a.png": [1, 2]}}).encode(),
        lambda content: json.dumps({**json.loads(content), "images": 5}).encode(),
        lambda content: content.replace(b",20,10]", b',"20",10]'),
    ],
)
def test_a_damaged_or_foreign_index_counts_for_nothing(folder, decoded, damage):
    path = old_image(folder / "a.png")
    sizes(path)
    (file,) = image_index.cache_folder().iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert sizes(path) == {"a.png": (20, 10)}
    assert decoded == ["a.png", "a.png"]


def test_files_that_are_gone_leave_the_index(folder, decoded):
    gone, stays = old_image(folder / "gone.png"), old_image(folder / "stays.png")
    sizes(gone, stays)
    gone.unlink()
    sizes(stays, old_image(folder / "new.png"))
    (file,) = image_index.cache_folder().iterdir()
    assert sorted(json.loads(file.read_bytes())["images"]) == ["new.png", "stays.png"]


def test_no_place_for_the_index_is_no_error(folder, decoded, tmp_path):
    (tmp_path / "cache").write_text("a file where the cache folder should be")
    path = old_image(folder / "a.png")
    assert sizes(path) == sizes(path) == {"a.png": (20, 10)}


def test_what_was_checked_before_an_interruption_is_kept(folder, decoded, monkeypatch):
    paths = [old_image(folder / f"{number}.png") for number in range(30)]

    def interrupted(items, total, what):
        for number, item in enumerate(items):
            if number == 20:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(image_files, "progress", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check_images(paths, {}, [])
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent / "cache"))
    index = image_index.ImageIndex(folder)
    known = [path for path in paths if index.size_of(path.name, user_cache.file_state(path))]
    assert known == paths[:20]
