"""How many tokens captions have, for many captions.

Tokenizing a caption whole takes some 0.6 ms, counting it word by word some 20 us: CLIP's BPE never merges across words,
so that words that were seen before need only be looked up.
"""

import functools
import re
from collections.abc import Callable

# CLIP's split of a text into words, for ASCII.
_WORD = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^ \na-z0-9]+")

# Printable ASCII and newlines, which ftfy leaves as it is but for HTML entities.
_PLAIN = re.compile(r"[ -~\n]*")
_SPECIAL = ("&", "<|")  # HTML entities; CLIP's own marks such as <|endoftext|>

WORDS_KEPT = 1 << 16


def word_wise(count: Callable[[str], int]) -> Callable[[str], int]:
    """The same numbers as `count` (content tokens of a text, uncut), faster for plain ASCII texts."""
    count_word = functools.lru_cache(maxsize=WORDS_KEPT)(count)

    def count_text(text: str) -> int:
        if not _PLAIN.fullmatch(text) or any(mark in text for mark in _SPECIAL):
            return count(text)
        return sum(map(count_word, _WORD.findall(text.lower())))

    return count_text
