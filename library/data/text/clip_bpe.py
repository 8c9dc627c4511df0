"""Text to CLIP's token ids, by OpenAI's byte pair encoding (Radford et al. 2021; Sennrich et al. 2016).

The vocabulary is the list of merges that the package `openai-clip` carries, so nothing is downloaded. Text is cleaned
by ftfy as OpenAI's was; without it the ids of curly quotes, full-width signs or HTML entities would differ without a
word, so it is required. Plain ASCII needs neither ftfy nor `regex`, and most runs never import them.
"""

import functools
import gzip
import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

BOS = 49406
EOS = 49407
SPECIAL: Mapping[str, int] = MappingProxyType({"<|startoftext|>": BOS, "<|endoftext|>": EOS})

_BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"
_BYTES = 256
_MERGES = BOS - 2 * _BYTES  # one id for each merge, after 256 bytes inside and 256 bytes at the end of a word

# Words as OpenAI's tokenizer cuts them: special tokens, English endings, letters, single digits, runs of other signs.
_WORD = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_ASCII_WORD = re.compile(_WORD.replace(r"\p{L}", "a-z").replace(r"\p{N}", "0-9"))
_SPECIAL = re.compile("(" + "|".join(map(re.escape, SPECIAL)) + ")")
_PLAIN = re.compile(r"[ -%'-~\n]*")
"""What ftfy leaves as it is: printable ASCII and newlines, without the ampersand of HTML entities."""

Pairs = Mapping[tuple[int, int], int]
"""Two neighbouring ids -> the id they become; the smaller it is, the sooner they are joined."""


def content_ids(text: str) -> tuple[int, ...]:
    """Token ids of a text, without BOS and EOS around it and uncut.

    Raises:
        ValueError: a package that this needs is missing.
    """
    ids: list[int] = []
    for piece in _SPECIAL.split(text):
        if piece in SPECIAL:
            ids.append(SPECIAL[piece])
            continue
        for word in _words(piece):
            ids += _word_ids(word)
    return tuple(ids)


def _words(text: str) -> Iterable[str]:
    """The text cleaned, in lower case, cut into words."""
    if _PLAIN.fullmatch(text):
        return _ASCII_WORD.findall(text.lower())
    fix_text, find_words = _unicode_tools()
    return find_words(fix_text(text).strip().lower())


@functools.cache
def _unicode_tools() -> tuple[Callable[[str], str], Callable[[str], list[str]]]:
    """(ftfy's cleaning, cutting into words) for any text."""
    try:
        import ftfy
        import regex
    except ImportError as error:
        raise ValueError(f"captions that are not plain ASCII need the packages ftfy and regex: {error}") from error
    return ftfy.fix_text, regex.compile(_WORD, regex.IGNORECASE).findall


@functools.lru_cache(maxsize=1 << 16)
def _word_ids(word: str) -> tuple[int, ...]:
    """Ids of one word: its bytes, the best pair of neighbours joined again and again."""
    if word in SPECIAL:
        return (SPECIAL[word],)
    pairs, symbols = _vocabulary()
    ids = [symbols[byte] for byte in word.encode("utf-8")]
    ids[-1] += _BYTES
    while True:
        joined = min((pairs.get(pair, BOS) for pair in zip(ids, ids[1:], strict=False)), default=BOS)
        if joined == BOS:
            return tuple(ids)
        ids = _join(ids, joined, pairs)


def _join(ids: list[int], joined: int, pairs: Pairs) -> list[int]:
    """All pairs that become this id, from left to right."""
    result = []
    i = 0
    while i < len(ids):
        is_pair = i + 1 < len(ids) and pairs.get((ids[i], ids[i + 1])) == joined
        result.append(joined if is_pair else ids[i])
        i += 2 if is_pair else 1
    return result


@functools.cache
def _vocabulary() -> tuple[Pairs, tuple[int, ...]]:
    """(pairs, id of each byte inside a word)."""
    order = _byte_order()
    symbols = _byte_symbols(order)
    ids = {symbol: i for i, symbol in enumerate(symbols)}
    ids |= {f"{symbol}</w>": i for i, symbol in enumerate(symbols, start=_BYTES)}
    pairs = {}
    for joined, merge in enumerate(read_merges(), start=2 * _BYTES):
        left, right = merge.split(" ")
        pairs[ids[left], ids[right]] = ids[left + right] = joined
    assert len(ids) == len(pairs) + 2 * _BYTES == BOS, "the file of merges is not the one of CLIP"
    id_of_byte = dict(zip(order, range(_BYTES), strict=True))
    return pairs, tuple(id_of_byte[byte] for byte in range(_BYTES))


def _byte_order() -> list[int]:
    """The bytes in the order of their ids: those that are printable in Latin 1 first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    return printable + [byte for byte in range(_BYTES) if byte not in printable]


def _byte_symbols(order: list[int]) -> list[str]:
    """How the file of merges writes the bytes: as in Latin 1; where that is not printable, characters from 256 on."""
    printable = len(order) - order[::-1].index(0xFF)
    return [chr(byte) if i < printable else chr(_BYTES + i - printable) for i, byte in enumerate(order)]


def read_merges() -> list[str]:
    """The merges, from the package openai-clip, without importing it (it would import torch)."""
    spec = importlib.util.find_spec("clip")
    folders = spec.submodule_search_locations if spec is not None else None
    for folder in folders or ():
        path = Path(folder) / _BPE_FILE
        if path.is_file():
            with gzip.open(path, "rt", encoding="utf-8") as file:
                return file.read().split("\n")[1 : 1 + _MERGES]
    raise ValueError(f"CLIP's vocabulary {_BPE_FILE} was not found: install the package openai-clip")
