"""Captions against the reference's tables, and what is read from files."""

import json
import random

import pytest

from library.data.text.captions import (
    CaptionMoment,
    join_caption_and_tags,
    process_caption,
    read_caption_file,
    tag_frequency,
)
from library.data.text.prompt_syntax import line_to_prompt_dict, parse_prompt_attention
from library.settings.config_util import SubsetConfig
from tools.table_checks import TABLE_CHECKS


@pytest.mark.parametrize(
    "table", ["process_caption", "set_tag_frequency", "line_to_prompt_dict", "parse_prompt_attention"]
)
def test_reference_table(golden, table):
    cases = json.loads((golden / "kohya_tables.json").read_text(encoding="utf-8"))[table]
    assert TABLE_CHECKS[table](cases) == []


def test_wrong_tables_are_noticed():
    caption = {"caption": "a, b", "subset": {"shuffle_caption": True}, "dataset": {}, "random_seed": 0, "result": "z"}
    assert len(TABLE_CHECKS["process_caption"]([caption])) == 1
    assert len(TABLE_CHECKS["line_to_prompt_dict"]({"a --w 5": {"prompt": "a", "width": 6}})) == 1
    assert len(TABLE_CHECKS["parse_prompt_attention"]({"(a)": [["a", 1.2]]})) == 1
    assert len(TABLE_CHECKS["set_tag_frequency"]({"10_x": {"A": 2}})) == 1


def caption_of(text: str, seed: int = 0, moment: CaptionMoment | None = None, **options: object) -> str:
    subset = SubsetConfig(image_dir="x", **options)
    return process_caption(text, subset, moment or CaptionMoment(), random.Random(seed))


def test_kept_tokens_stay_and_the_rest_is_a_permutation():
    results = {caption_of("a, b, c, d, e", seed, shuffle_caption=True, keep_tokens=2) for seed in range(40)}
    assert len(results) == 6
    assert all(result.startswith("a, b, ") for result in results)
    assert all(sorted(result.split(", ")) == list("abcde") for result in results)


def test_warmup_adds_tags_with_the_steps():
    lengths = [
        len(caption_of("a,b,c,d,e", moment=CaptionMoment(step=step), token_warmup_step=8).split(", "))
        for step in range(10)
    ]
    assert lengths == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_dropout_rates_are_rates():
    rng = random.Random(1)
    subset = SubsetConfig(image_dir="x", caption_dropout_rate=0.25)
    empty = sum(process_caption("a", subset, CaptionMoment(), rng) == "" for _ in range(4000))
    assert abs(empty / 4000 - 0.25) < 0.03  # over four standard deviations


def test_wildcards_keep_characters_that_could_be_marks():
    text = chr(0xE000) + "{{x}} {a|a}"
    assert caption_of(text, enable_wildcard=True) == chr(0xE000) + "{x} a"


@pytest.mark.parametrize("prefix", [b"", b"\xef\xbb\xbf"])
def test_caption_file_utf8_with_and_without_bom(tmp_path, prefix):
    path = tmp_path / "a.txt"
    path.write_bytes(prefix + "\n  caf\u00e9, \u732b \r\nsecond\r\n\n third".encode())
    assert read_caption_file(path, all_lines=False) == "caf\u00e9, \u732b"
    assert read_caption_file(path, all_lines=True) == "caf\u00e9, \u732b\nsecond\nthird"


def test_only_line_feeds_and_carriage_returns_end_a_line_of_a_caption_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("one\u2028two, \x85three\rfour\x0bfive\r\n".encode())
    assert read_caption_file(path, all_lines=False) == "one\u2028two, \x85three"
    assert read_caption_file(path, all_lines=True) == "one\u2028two, \x85three\nfour\x0bfive"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_caption_file_in_the_encoding_that_its_mark_says(tmp_path, encoding):
    text = "\u732b\u3068\u72ac, caf\u00e9"
    marked = text if encoding in ("utf-8-sig", "utf-16", "utf-32") else "\ufeff" + text
    (tmp_path / "a.txt").write_bytes(marked.encode(encoding))
    assert read_caption_file(tmp_path / "a.txt", all_lines=False).lstrip("\ufeff") == text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("\u7ea2\u8272\u7684\u732b".encode("gbk"), "not UTF-8.*as GBK it would begin '\u7ea2\u8272\u7684\u732b'"),
        ("\u732b\u3068\u72ac".encode("shift-jis"), "not UTF-8.*Shift-JIS it would begin '\u732b\u3068\u72ac'"),
        (
            b"caf\xe9",
            "not UTF-8 .byte 0xe9 at position 3.; as Windows-1252 it would begin 'caf\u00e9'; save it as UTF-8",
        ),
        (b"\x81\xff\x81", "not UTF-8 .byte 0x81 at position 0.; save it"),
        (b"\xff\xfea", "begins as UTF-16 and is not"),
        ("ab".encode("utf-16-le"), "zero bytes"),
    ],
)
def test_caption_file_in_an_uncertain_encoding_is_refused_by_name(tmp_path, data, message):
    path = tmp_path / "picture 7.caption"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"picture 7\.caption: .*{message}"):
        read_caption_file(path, all_lines=False)


def test_caption_and_tags_of_metadata():
    plain, wild = SubsetConfig(image_dir="x"), SubsetConfig(image_dir="x", enable_wildcard=True)
    assert join_caption_and_tags("a cat", "fur, paw", plain) == "a cat,fur, paw"
    assert join_caption_and_tags(None, "fur, paw", plain) == "fur, paw"
    assert join_caption_and_tags("one\n\ntwo", "fur\npaw", wild) == "one,fur,paw\ntwo,fur,paw"
    assert join_caption_and_tags(None, "fur", wild) == "fur"
    assert join_caption_and_tags(None, None, plain) == ""


def test_tag_frequency():
    assert tag_frequency(["1girl, Smile,smile", " smile ,, 1girl"]) == {"1girl": 2, "smile": 3}


def test_prompt_line_options(caplog):
    line = "A Cat --W 768 --h 512 --n bad, worse --g 3.5 --ctr 0.5 --rcfg 1 --fs 3 --cn c.png --bogus 3"
    assert line_to_prompt_dict(line) == {
        "prompt": "A Cat",
        "width": 768,
        "height": 512,
        "negative_prompt": "bad, worse",
        "guidance_scale": 3.5,
        "cfg_trunc_ratio": 0.5,
        "renorm_cfg": 1.0,
        "flow_shift": "3",
        "controlnet_image": "c.png",
    }
    assert "--bogus 3" in caplog.text


def test_prompt_weights_nest_and_unclosed_brackets_close_at_the_end():
    assert parse_prompt_attention("a ((b)) [c") == [("a ", 1.0), ("b", 1.1 * 1.1), (" ", 1.0), ("c", 1 / 1.1)]
    assert parse_prompt_attention("(a (b:2):0.5)") == [("a ", 0.5), ("b", 1.0)]


def test_a_weight_that_is_no_number_is_an_error():
    with pytest.raises(ValueError, match=r"'1\.2\.3' is not a number"):
        parse_prompt_attention("(x:1.2.3)")
