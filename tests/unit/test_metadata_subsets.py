"""Data sets whose captions come from a metadata file."""

import json

import pytest

from library.data.report.dataset_metadata import dataset_metadata
from library.settings.config_util import SubsetConfig
from tests.unit.dataset_help import captions_by_name, config, draw_images, train_data


@pytest.mark.parametrize("with_image_dir", [True, False])
def test_metadata_keys_as_full_path_relative_path_and_stem(tmp_path, with_image_dir):
    folder = draw_images(tmp_path / "images")
    draw_images(folder / "sub", {"deep.dot": (64, 64)})
    prefix = "" if with_image_dir else "images/"
    metadata = {
        str(folder / "square.png"): {"caption": "full path", "tags": "x, y"},
        prefix + "wide.png": {"caption": "relative"},
        prefix + "tall": {"tags": "only, tags"},
        prefix + "sub/deep.dot": {"caption": "stem in a folder", "tags": ""},
    }
    metadata_file = tmp_path / "meta.json"
    metadata_file.write_text(json.dumps(metadata), encoding="utf-8")
    image_dir = str(folder) if with_image_dir else None
    data = train_data(config(SubsetConfig(metadata_file=str(metadata_file), image_dir=image_dir)))
    captions = captions_by_name(data)
    assert captions == {
        "square.png": "full path,x, y",
        "wide.png": "relative",
        "tall.png": "only, tags",
        "deep.dot.png": "stem in a folder",
    }
    notes = " ".join(data.plan().notes)
    assert ("1 image of" in notes and "big.png" in notes) == with_image_dir
    assert dataset_metadata(data)["ss_tag_frequency"] == {"meta.json": {"x": 1, "y": 1, "only": 1, "tags": 1}}


def test_metadata_keys_that_begin_with_the_image_folder(tmp_path, monkeypatch):
    draw_images(tmp_path / "set" / "images", {"a": (64, 64), "b": (64, 64)})
    draw_images(tmp_path, {"c": (64, 64)})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "meta.json").write_text('{"set/images/a.png": {"caption": "x"}, "./set/images/b": {"caption": "y"}}')
    settings = config(SubsetConfig(metadata_file="meta.json", image_dir="set/images/"))
    assert captions_by_name(train_data(settings)) == {"a.png": "x", "b.png": "y"}
    (tmp_path / "meta.json").write_text('{"c.png": {"caption": "beside, not in the folder"}}')
    with pytest.raises(ValueError, match=r"key 'c\.png' has no image; looked for set/images/c\.png"):
        train_data(settings)


def test_metadata_as_json_lines(tmp_path):
    folder = draw_images(tmp_path / "images", {"a": (64, 64), "b": (64, 64)})
    lines = [json.dumps({"image_path": f"{name}.png", "caption": f"picture {name}"}) for name in "ab"]
    (tmp_path / "meta.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = train_data(config(SubsetConfig(metadata_file=str(tmp_path / "meta.jsonl"), image_dir=str(folder))))
    assert sorted(text for batch in data.batches(1, 0) for text in batch.captions) == ["picture a", "picture b"]


def test_captions_in_json_lines_may_hold_other_line_breaks(tmp_path):
    folder = draw_images(tmp_path / "images", {"a": (64, 64)})
    line = json.dumps({"image_path": "a", "caption": "one\u2028two\x85three"}, ensure_ascii=False)
    (tmp_path / "meta.jsonl").write_text(f"\n{line}\r\n", encoding="utf-8")
    settings = config(SubsetConfig(metadata_file=str(tmp_path / "meta.jsonl"), image_dir=str(folder)))
    assert captions_by_name(train_data(settings)) == {"a.png": "one\u2028two\x85three"}


@pytest.mark.parametrize("bad", ["{", '{"caption": "x"}', "3"])
def test_a_bad_json_line_is_told_with_its_number(tmp_path, bad):
    (tmp_path / "meta.jsonl").write_text('{"image_path": "a"}\n\n' + bad)
    with pytest.raises(ValueError, match=r"meta.jsonl' is not valid JSON: .*line 3 column"):
        train_data(config(SubsetConfig(metadata_file=str(tmp_path / "meta.jsonl"))))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "not valid JSON"),
        ("[1]", "outermost value"),
        ('{"a": 1}', "has to be an object"),
        ('{"a": {"caption": "x"}, "a": {"caption": "y"}}', "'a' is there twice"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_bad_metadata_files(tmp_path, content, expected):
    (tmp_path / "meta.json").write_text(content)
    with pytest.raises(ValueError, match=expected):
        train_data(config(SubsetConfig(metadata_file=str(tmp_path / "meta.json"))))


def test_a_stem_that_fits_two_images_is_a_problem(tmp_path):
    folder = draw_images(tmp_path, {"a": (64, 64)})
    draw_images(folder, {"a": (64, 64)}, ".jpg")
    (tmp_path / "meta.json").write_text(json.dumps({"a": {"caption": "x"}}))
    with pytest.raises(ValueError, match=r"fits several images \(a\.jpg, a\.png\)"):
        train_data(config(SubsetConfig(metadata_file=str(tmp_path / "meta.json"), image_dir=str(folder))))
