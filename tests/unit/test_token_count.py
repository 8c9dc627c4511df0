"""Counting tokens word by word gives what tokenizing the whole text gives."""

import random
import string

import pytest

from library.data.text.token_count import word_wise
from library.data.text.tokenizer import sdxl_tokenizers

TOKENIZER = sdxl_tokenizers()[0]
PIECES = (
    "'s",
    "'LL",
    "''",
    "don't",
    "it's",
    "<|",
    "|>",
    "<|endoftext|>",
    "&amp;",
    "&",
    "1girl",
    "2020",
    "(a:1.2)",
    "\n",
)


def random_text(rng: random.Random) -> str:
    """Letters, digits, punctuation, blanks and the pieces that tokenizers treat apart."""
    letters = string.ascii_letters * 3 + string.digits + string.punctuation + " " * 30
    parts = [rng.choice(PIECES) if rng.random() < 0.1 else rng.choice(letters) for _ in range(rng.randint(0, 120))]
    return "".join(parts)


def test_word_wise_counts_are_the_tokenizers() -> None:
    rng = random.Random(0)
    count = word_wise(TOKENIZER.count)
    texts = [random_text(rng) for _ in range(800)]
    assert [text for text in texts if count(text) != TOKENIZER.count(text)] == []


def test_the_whole_text_is_asked_only_where_it_has_to_be() -> None:
    asked = []

    def ask(text: str) -> int:
        asked.append(text)
        return TOKENIZER.count(text)

    count = word_wise(ask)
    assert count("a cat, a CAT's cat") == TOKENIZER.count("a cat, a CAT's cat")
    assert sorted(asked) == ["'s", ",", "a", "cat"]


@pytest.mark.parametrize(
    "text", ["caf\u00e9", "a &lt; b", "<|endoftext|>", "tab\there", "\u201cquoted\u201d", "\x1b[0m"]
)
def test_texts_that_are_cleaned_first_are_counted_whole(text: str) -> None:
    asked = []
    word_wise(lambda given: asked.append(given) or 1)(text)
    assert asked == [text]
