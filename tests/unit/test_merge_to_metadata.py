"""Finding images in folders, and merging their text files into metadata."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from library.curation.image_tree import KeyFinder, find_images
from library.curation.metadata_table import load_table, save_table
from library.data.scan.metadata_file import KeyResolver, read_metadata
from tools import merge_captions_to_metadata, merge_dd_tags_to_metadata


def picture(path: Path, text: str | None = None, ending: str = ".caption") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)
    if text is not None:
        path.with_name(path.stem + ending).write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "set of.pictures"
    picture(root / "b.png", "bee\n")
    picture(root / "a.b.JPG", "  an a\u00e9\nsecond line ")
    picture(root / "sub" / "b.png", "bee below")
    return root


def test_search(folder):
    inside = [path.relative_to(folder).as_posix() for path in find_images(folder, recursive=True).images]
    assert inside == ["a.b.JPG", "b.png", "sub/b.png"]
    assert [path.name for path in find_images(folder, recursive=False).images] == ["a.b.JPG", "b.png"]


def test_search_follows_links_and_ends(folder, tmp_path):
    (folder / "sub" / "loop").symlink_to(folder)
    (folder / "other").symlink_to(tmp_path / "elsewhere")
    picture(tmp_path / "elsewhere" / "c.png")
    inside = [path.relative_to(folder).as_posix() for path in find_images(folder, recursive=True).images]
    assert inside == ["a.b.JPG", "b.png", "other/c.png", "sub/b.png"]


def test_search_refuses(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        find_images(tmp_path / "none", recursive=True)
    with pytest.raises(ValueError, match="no images .*and the folders below"):
        find_images(tmp_path, recursive=True)


def test_keys_in_every_form_are_found(folder):
    tree = find_images(folder, recursive=True)
    a, b, below = tree.images
    assert KeyFinder(tree, {"b": {}, "sub/b": {}}).find(b) == "b"
    assert KeyFinder(tree, {"b": {}, "sub/b": {}}).find(below) == "sub/b"
    assert KeyFinder(tree, {"b": {}}).find(below) is None
    assert KeyFinder(tree, {str(a): {}}).find(a) == str(a)
    assert KeyFinder(tree, {"a.b": {}, "a.b.JPG": {}}).find(a) == "a.b.JPG"
    picture(folder / "b.webp")
    tree = find_images(folder, recursive=True)
    with pytest.raises(ValueError, match="'b' fits several images"):
        KeyFinder(tree, {"b": {}}).find(b)


@pytest.mark.parametrize("options", [[], ["--full_path"]])
@pytest.mark.parametrize("name", ["out.json", "out.jsonl"])
def test_captions(folder, tmp_path, options, name):
    """What is written is what the trainer reads, image for image."""
    out = tmp_path / name
    assert merge_captions_to_metadata.main([str(folder), str(out), "--recursive", *options]) == 0
    entries = read_metadata(out)
    resolver = KeyResolver(folder, out)
    found = {resolver.find(entry.key).relative_to(folder).as_posix(): entry.caption for entry in entries}
    assert found == {"a.b.JPG": "an a\u00e9\nsecond line", "b.png": "bee", "sub/b.png": "bee below"}
    assert all(os.path.isabs(entry.key) for entry in entries) == bool(options)


def test_merging_keeps_what_is_there(folder, tmp_path, capsys):
    out = tmp_path / "out.json"
    save_table(out, {"b": {"caption": "old", "train_resolution": [4, 4]}, "gone": {"tags": "x"}})
    assert merge_captions_to_metadata.main([str(folder), str(out)]) == 0
    assert "1 of them new" in capsys.readouterr().out
    for image in find_images(folder, recursive=False).images:
        picture(image, "t1, t2", ".txt")
    assert merge_dd_tags_to_metadata.main([str(folder), str(tmp_path / "two.json"), "--in_json", str(out)]) == 0
    assert load_table(tmp_path / "two.json") == {
        "b": {"caption": "bee", "train_resolution": [4, 4], "tags": "t1, t2"},
        "gone": {"tags": "x"},
        "a.b.JPG": {"caption": "an a\u00e9\nsecond line", "tags": "t1, t2"},
    }
    assert "tags" not in load_table(out)["b"]


def test_missing_captions_are_all_named_and_nothing_is_written(folder, tmp_path, capsys):
    picture(folder / "x.png")
    picture(folder / "y.png")
    (folder / "b.caption").write_bytes(b"\xff\xff\x00bad")
    out = tmp_path / "out.json"
    assert merge_captions_to_metadata.main([str(folder), str(out)]) == 1
    error = capsys.readouterr().err
    assert "x.caption" in error and "y.caption" in error and "b.caption" in error
    assert not out.exists()


def test_the_other_spelling(folder, tmp_path):
    assert merge_dd_tags_to_metadata.main([str(folder), str(tmp_path / "o.json"), "--caption_extention=caption"]) == 0
    assert load_table(tmp_path / "o.json")["b.png"] == {"tags": "bee"}


def test_bad_metadata_is_refused(folder, tmp_path, capsys):
    out = tmp_path / "out.json"
    out.write_text('{"a": 1, "b": {}, "c": []}')
    before = out.read_bytes()
    assert merge_captions_to_metadata.main([str(folder), str(out)]) == 1
    error = capsys.readouterr().err
    assert "'a'" in error and "'c'" in error and out.read_bytes() == before
    lines = tmp_path / "out.jsonl"
    lines.write_text('{"image_path": "a"}\nnot json\n{"caption": "x"}\n{"image_path": "a"}\n')
    with pytest.raises(ValueError, match="(?s)line 2 is.*line 3 has.*line 4: .*twice"):
        load_table(lines)


def test_a_name_that_is_no_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not UTF-8"):
        save_table(tmp_path / "a.json", {"\udcff.png": {}})


def test_lines_keep_order_and_text(tmp_path):
    table = {"z\u2028\u00e9": {"caption": "line\nbreak", "n": 1}, "a": {}}
    save_table(tmp_path / "a.jsonl", table)
    assert list(load_table(tmp_path / "a.jsonl").items()) == list(table.items())
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()  # which breaks at U+2028, too
    assert [json.loads(line)["image_path"] for line in lines] == list(table)
