"""Our token ids against transformers' CLIPTokenizer, which the original uses, on random texts of all kinds."""

import gzip
import importlib.util
import json
import random
from collections.abc import Callable
from pathlib import Path

import ftfy
import pytest
from transformers.models.clip.tokenization_clip import CLIPTokenizer, bytes_to_unicode

from library.data.text.clip_bpe import content_ids

PIECES = (
    *("'s", "'LL", "''", "don't", "it's", "1girl", "2020", "(a:1.2)", "\n", "\r\n", "\t"),
    *("<|", "|>", "<|endoftext|>", "<|startoftext|>", "<|ENDOFTEXT|>", "<|StartOfText|>"),
    *("&amp;", "&lt;", "&lt", "&#233;", "&", "<"),
    *("\x1b[31m", "\x00", "\x1c", "\x7f", "\x85", "\u2028", "\xa0", "\u3000", "\ufeff", "\u200d"),
    *("\u201c", "\u2019s", "\ufb01", "\uff21", "\u00bd", "\u2167", "\u0663", "\ud800", "\udc00"),
    *("\u017f", "'\u017f", "\u0130", "\u1e9e", "\u212b", "e\u0301", "\u0345", "\u01c5"),  # odd lower and upper case
    *("\u00c3\u00a9", "\u00e2\u20ac\u0153"),  # UTF-8 read as Windows-1252, which ftfy mends
    *("\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\u65e5\u672c", "\ud55c\uad6d", "\u3070\u304b"),
)
RANGES = (
    *(((0x20, 0x7E),) * 6),
    *((0x00, 0xFF), (0x100, 0x24F), (0x370, 0x4FF), (0x600, 0x6FF), (0x900, 0x97F), (0x2000, 0x2BFF)),
    *((0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xD800, 0xDFFF), (0xFB00, 0xFB06), (0xFF00, 0xFFEF)),
    *((0x1F300, 0x1FAFF), (0x00, 0x10FFFF)),
)
"""First and last character of what a text's characters are drawn from."""


def random_text(rng: random.Random) -> str:
    """Up to 60 characters of up to three ranges, blanks, and the pieces that tokenizers treat apart."""
    ranges = [rng.choice(RANGES) for _ in range(rng.randint(1, 3))]

    def part() -> str:
        kind = rng.random()
        if kind < 0.12:
            return rng.choice(PIECES)
        return " " if kind < 0.3 else chr(rng.randint(*rng.choice(ranges)))

    return "".join(part() for _ in range(rng.randint(0, 60)))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[int]]:
    """transformers' tokenizer with the vocabulary of the package openai-clip."""
    folder = tmp_path_factory.mktemp("vocabulary")
    spec = importlib.util.find_spec("clip")
    assert spec is not None and spec.origin is not None
    packed = Path(spec.origin).with_name("bpe_simple_vocab_16e6.txt.gz").read_bytes()
    merges = gzip.decompress(packed).decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    symbols = list(bytes_to_unicode().values())
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *(merge.replace(" ", "") for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.fix_text = ftfy.fix_text
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("seed", range(4))
def test_the_ids_are_transformers(reference: Callable[[str], list[int]], seed: int) -> None:
    rng = random.Random(seed)
    texts = [random_text(rng) for _ in range(1000)]
    assert len({character for text in texts for character in text}) > 5000
    assert [ascii(text) for text in texts if list(content_ids(text)) != reference(text)] == []


@pytest.mark.parametrize("piece", PIECES, ids=ascii)
def test_each_odd_piece_alone_and_between_words(reference: Callable[[str], list[int]], piece: str) -> None:
    for text in (piece, f"a {piece} Cat", f"cat{piece}cat", piece * 2):
        assert list(content_ids(text)) == reference(text), ascii(text)
