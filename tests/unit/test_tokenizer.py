"""Token ids of both text encoders against the reference, and the shape of long captions."""

import json
import subprocess
import sys

import numpy as np
import pytest

from library.data.text.tokenizer import BOS, EOS, ClipTokenizer
from library.families.sdxl.tokenizers import sdxl_tokenizers
from tools.table_checks import check_tokens


def test_reference_ids_and_weights(golden):
    assert check_tokens(json.loads((golden / "tokens.json").read_text(encoding="utf-8"))) == []


def test_known_ids():
    """Ids of OpenAI's own tokenizer for this text."""
    ids = ClipTokenizer(pad_token_id=0).ids("a photo of a cat")
    assert ids.dtype == np.int64 and ids.shape == (1, 77)
    assert ids[0, :8].tolist() == [BOS, 320, 1125, 539, 320, 2368, EOS, 0]


def test_curly_quotes_and_full_width_letters_are_cleaned_as_by_openai():
    tokenizer = ClipTokenizer(pad_token_id=0)
    np.testing.assert_array_equal(tokenizer.ids("\u201ccat\u2019s\u201d \uff21"), tokenizer.ids('"cat\'s" A'))


@pytest.mark.parametrize(("length", "chunks"), [(None, 1), (75, 1), (150, 2), (225, 3)])
@pytest.mark.parametrize("words", [0, 3, 74, 75, 76, 150, 224, 225, 226, 400])
def test_chunks_hold_the_content_in_order(length, chunks, words):
    clip_l, open_clip = sdxl_tokenizers()
    content = ([320, 2368] * words)[:words]
    text = " ".join(("a cat " * words).split()[:words])
    assert clip_l.count(text) == words
    for tokenizer in (clip_l, open_clip):
        ids = tokenizer.ids(text, length)
        assert ids.shape == (chunks, 77)
        assert (ids[:, 0] == BOS).all()
        assert all(EOS in chunk for chunk in ids.tolist())
        kept = content[: 75 * chunks]
        assert ids[:, 1:-1].reshape(-1)[: len(kept)].tolist() == kept


def test_weights_follow_their_tokens_across_chunks():
    text = "(" + "cat " * 80 + ":1.5) dog"
    ids, weights = ClipTokenizer(pad_token_id=0).ids_and_weights(text, 150)
    assert weights.shape == ids.shape == (2, 77) and weights.dtype == np.float32
    assert (weights[0, 1:-1] == 1.5).all() and (weights[:, [0, -1]] == 1).all()
    assert weights[1, 1:8].tolist() == [1.5] * 5 + [1.0, 1.0]


def test_a_limit_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="max_token_length is 100; allowed are"):
        ClipTokenizer(pad_token_id=0).ids("a", 100)


def test_plain_texts_need_nothing_heavy():
    code = (
        "import sys, library.data.text.tokenizer as t; t.ClipTokenizer(0).count('a'); "
        "print({'torch', 'mindspore', 'clip', 'transformers', 'ftfy', 'regex'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout == "set()\n"
