"""Tidying captions and tags, against the recorded cases and by properties."""

import json
import random

import pytest

from library.curation.caption_cleaning import clean_caption, clean_tags, tags_behind_rating
from tools.clean_captions_and_tags import main
from tools.table_checks import TABLE_CHECKS


@pytest.mark.parametrize("table", ["clean_tags", "clean_caption"])
def test_recorded_tables(golden, table):
    cases = json.loads((golden / "kohya_tables.json").read_text(encoding="utf-8"))[table]
    assert TABLE_CHECKS[table](cases) == []
    assert len(TABLE_CHECKS[table]([{**case, "out": "another"} for case in cases])) == len(cases)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("1girl, blue_eyes, red_eyes", "1girl, blue eyes, red eyes"),  # one person may have two colours
        ("2girls, blue_eyes, red_eyes, ponytail", "2girls, ponytail"),
        ("2girls, blue_eyes", "2girls, blue eyes"),
        ("2boys, long_hair, short_hair", "2boys"),
        ("2boys, long_hair, red_hair, messy_hair", "2boys, long hair"),
        ("solo, rating:safe", "solo"),
        ("solo, rating_safe", "solo"),
        ("shirt, big white shirt, white shirt", "big white shirt, white shirt"),
        ("^_^, >_<", "^_^, > <"),
        ("t-shirt, white t-shirt", "white t-shirt"),
        ("", ""),
    ],
)
def test_tags(before, after):
    assert clean_tags(before) == after


def test_nothing_is_invented_and_order_is_kept():
    words = ("2girls", "1girl", "red_hair", "long_hair", "blue_eyes", "red_eyes", "shirt", "red_shirt", "solo", "^_^")
    rng = random.Random(0)
    for _ in range(300):
        tags = rng.sample(words, rng.randint(1, len(words)))
        spaced = [tag if tag == "^_^" else tag.replace("_", " ") for tag in tags]
        cleaned = iter(clean_tags(", ".join(tags)).split(", "))
        left = list(cleaned)
        assert [tag for tag in spaced if tag in left] == left
        assert {"2girls", "1girl", "solo", "^_^"} & set(tags) <= set(left)


def test_captions_have_one_word_for_people():
    assert clean_caption("a young woman and a female person") == "a girl and a girl"
    assert clean_caption("an anime cartoon image") == "an image"


def test_what_a_rating_takes_with_it_is_known():
    assert tags_behind_rating("solo, rating_safe, hat") == "hat"
    assert tags_behind_rating("solo, rating:safe") == tags_behind_rating("solo") == ""


def test_program(tmp_path, capsys):
    source, target = tmp_path / "a.json", tmp_path / "b.json"
    table = {"1": {"tags": "a_b, rating:x, c", "caption": "a lady", "image_size": [3, 4]}, "2": {"caption": None}}
    source.write_text(json.dumps(table), encoding="utf-8")
    assert main([str(source), str(target)]) == 0
    assert json.loads(target.read_text()) == {
        "1": {"tags": "a b", "caption": "a girl", "image_size": [3, 4]},
        "2": {"caption": None},
    }
    assert "dropped with it: c" in capsys.readouterr().out
    assert main(["folder", str(source), str(source), "--debug"]) == 0
    out = capsys.readouterr().out
    assert "folder is not needed" in out and "from: a lady" in out
    assert json.loads(source.read_text()) == json.loads(target.read_text())


def test_program_refuses_and_leaves_files_alone(tmp_path, capsys):
    source, target = tmp_path / "a.json", tmp_path / "b.json"
    source.write_text('{"1": {"tags": 7}, "2": {"caption": ["x"]}}')
    assert main([str(source), str(target)]) == 1
    error = capsys.readouterr().err
    assert "'1': tags has to be text, not 7" in error and "'2': caption" in error
    assert main([str(source)]) == 1
    assert main([str(tmp_path / "none.json"), str(target)]) == 1
    assert main([str(source), str(tmp_path / "b.txt")]) == 1
    assert "has to end in .json or .jsonl" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
