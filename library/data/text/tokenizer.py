"""Token ids for SDXL's two text encoders, exactly as the original makes them: padded, cut into chunks, weighted."""

import functools

import numpy as np

from library.data.text.clip_bpe import BOS, EOS, content_ids
from library.data.text.prompt_syntax import parse_prompt_attention

CHUNK = 77
"""Positions of a CLIP text encoder: BOS, 75 content tokens, EOS."""

TOKEN_LIMITS = (None, 75, 150, 225)
"""Allowed max_token_length; None is 75."""


class ClipTokenizer:
    """Text to CLIP token ids, padded and cut into chunks of 77.

    Long texts (max_token_length 150 and 225) become 2 or 3 chunks, each with its own BOS and EOS, as in
    kohya's TokenizeStrategy._get_input_ids.
    """

    def __init__(self, pad_token_id: int) -> None:
        """`pad_token_id`: 49407 (EOS) for CLIP ViT-L, 0 for OpenCLIP ViT-bigG."""
        self.pad_token_id = pad_token_id

    def ids(self, text: str, max_token_length: int | None = None) -> np.ndarray:
        """Token ids as int64 [chunks, 77]; content beyond the limit is cut."""
        limit = token_limit(max_token_length)
        return self._chunks(list(_content_ids(text)), limit)

    def ids_and_weights(self, text: str, max_token_length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Token ids [chunks, 77] int64 and their weights [chunks, 77] float32 of a text such as `a (cat:1.3)`.

        BOS, EOS and padding have weight 1. Raises ValueError for a weight that is not a number.
        """
        limit = token_limit(max_token_length)
        content: list[int] = []
        weights: list[float] = []
        for piece, weight in parse_prompt_attention(text):
            piece_ids = _content_ids(piece)
            content += piece_ids
            weights += [weight] * len(piece_ids)
        flat = np.ones(limit, np.float32)
        flat[: len(weights[:limit])] = weights[:limit]
        weights_NT = np.ones((limit // (CHUNK - 2), CHUNK), np.float32)
        weights_NT[:, 1:-1] = flat.reshape(-1, CHUNK - 2)
        return self._chunks(content, limit), weights_NT

    def count(self, text: str) -> int:
        """Number of content tokens of the text, uncut and without BOS and EOS."""
        return len(_content_ids(text))

    def count_weighted(self, text: str) -> int:
        """Like `count`, of a text such as `a (cat:1.3)`, whose brackets and weights are no tokens."""
        return sum(len(_content_ids(piece)) for piece, _ in parse_prompt_attention(text))

    def _chunks(self, content: list[int], limit: int) -> np.ndarray:
        content = content[:limit]
        padding = [self.pad_token_id] * (limit - len(content))
        line = [BOS, *content, EOS, *padding]
        if limit == CHUNK - 2:
            return np.array([line], np.int64)
        chunks = [[BOS, *line[start : start + CHUNK - 2], line[-1]] for start in range(1, limit + 1, CHUNK - 2)]
        if self.pad_token_id != EOS:
            for chunk in chunks:
                self._end(chunk)
        return np.array(chunks, np.int64)

    def _end(self, chunk: list[int]) -> None:
        """Give a chunk an EOS: after full content, or right behind BOS when it holds only padding."""
        if chunk[-2] not in (EOS, self.pad_token_id):
            chunk[-1] = EOS
        if chunk[1] == self.pad_token_id:
            chunk[1] = EOS


def token_limit(max_token_length: int | None) -> int:
    """Content tokens that max_token_length allows. Raises ValueError for a length that is not in TOKEN_LIMITS."""
    if max_token_length not in TOKEN_LIMITS:
        raise ValueError(f"max_token_length is {max_token_length}; allowed are 75 (or nothing), 150 and 225")
    return max_token_length or CHUNK - 2


_content_ids = functools.lru_cache(maxsize=16384)(content_ids)
