"""Captions: reading them from files, and what happens to one each time its image is drawn.

`process_caption` keeps the steps of kohya's BaseDataset.process_caption and the order of its random draws, so that the
same `random.Random` gives the same caption.
"""

import math
import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from library.data.text.text_files import read_text
from library.settings.config_util import SubsetConfig

_LINE_BREAK = re.compile(r"\r\n?|\n")  # str.splitlines would also cut at U+2028 and others that come with pasted text
_WILDCARD = re.compile(r"\{([^}]+)\}")
_PRIVATE_USE = range(0xE000, 0xF900)  # code points that stand for no character; Unicode's Private Use Area


@dataclass(frozen=True)
class CaptionMoment:
    """When in the run a caption is drawn."""

    epoch: int = 1
    """Counted from 1."""

    step: int = 0
    """Optimizer steps done so far."""

    max_train_steps: int = 0
    """Optimizer steps of the whole run; a token_warmup_step below 1 is a share of it."""


def add_prefix_and_suffix(caption: str, subset: SubsetConfig) -> str:
    """The caption with `caption_prefix` before and `caption_suffix` after it, each set off by one space."""
    if subset.caption_prefix:
        caption = f"{subset.caption_prefix} {caption}"
    if subset.caption_suffix:
        caption = f"{caption} {subset.caption_suffix}"
    return caption


def process_caption(caption: str, subset: SubsetConfig, moment: CaptionMoment, rng: random.Random) -> str:
    """The caption as it is trained at this moment: prefix, dropout, wildcards, token warmup, shuffle, tag dropout.

    Draws from `rng` only for options that are on. Source: kohya's BaseDataset.process_caption.
    """
    caption = add_prefix_and_suffix(caption, subset)
    if subset.caption_dropout_rate > 0 and rng.random() < subset.caption_dropout_rate:
        return ""
    every = subset.caption_dropout_every_n_epochs
    if every > 0 and moment.epoch % every == 0:
        return ""
    caption = _choose_wildcards(caption, rng) if subset.enable_wildcard else caption.split("\n")[0]
    if subset.shuffle_caption or subset.token_warmup_step > 0 or subset.caption_tag_dropout_rate > 0:
        caption = _rearrange_tags(caption, subset, moment, rng)
    if subset.secondary_separator:
        caption = caption.replace(subset.secondary_separator, subset.caption_separator)
    return caption


def _choose_wildcards(caption: str, rng: random.Random) -> str:
    """One line of a multi-line caption, one alternative of every `{a|b}`; `{{` and `}}` are literal braces."""
    if "\n" in caption:
        caption = rng.choice(caption.split("\n"))
    marks = (chr(code) for code in _PRIVATE_USE if chr(code) not in caption)
    opening, closing = next(marks), next(marks)
    caption = caption.replace("{{", opening).replace("}}", closing)
    caption = _WILDCARD.sub(lambda match: rng.choice(match.group(1).split("|")), caption)
    return caption.replace(opening, "{").replace(closing, "}")


def _rearrange_tags(caption: str, subset: SubsetConfig, moment: CaptionMoment, rng: random.Random) -> str:
    fixed, flexible, suffix = _split_tags(caption, subset)
    flexible = flexible[: _warmup_length(len(flexible), subset, moment)]
    if subset.shuffle_caption:
        rng.shuffle(flexible)
    rate = subset.caption_tag_dropout_rate
    if rate > 0:
        flexible = [tag for tag in flexible if rng.random() >= rate]
    return ", ".join(fixed + flexible + suffix)


def _split_tags(caption: str, subset: SubsetConfig) -> tuple[list[str], list[str], list[str]]:
    """Tags that stay in front, tags that may move, tags that stay at the end."""
    fence = subset.keep_tokens_separator
    if fence and fence in caption:
        parts = caption.split(fence, 2)
        groups = [[tag.strip() for tag in part.split(subset.caption_separator) if tag.strip()] for part in parts]
        return groups[0], groups[1], groups[2] if len(groups) == 3 else []
    tags = [tag.strip() for tag in caption.strip().split(subset.caption_separator)]
    keep = max(0, subset.keep_tokens)
    return tags[:keep], tags[keep:], []


def _warmup_length(count: int, subset: SubsetConfig, moment: CaptionMoment) -> int | None:
    """How many of `count` flexible tags are used at this step; None means all."""
    steps = subset.token_warmup_step
    if steps < 1:
        steps = math.floor(steps * moment.max_train_steps)
    if not steps or moment.step >= steps:
        return None
    return math.floor(moment.step * ((count - subset.token_warmup_min) / steps)) + subset.token_warmup_min


def tag_frequency(captions: Iterable[str]) -> dict[str, int]:
    """How often each comma-separated tag occurs, stripped and in lower case, in order of first occurrence."""
    tags = (tag.strip().lower() for caption in captions for tag in caption.split(","))
    return dict(Counter(tag for tag in tags if tag))


def read_caption_file(path: Path, *, all_lines: bool) -> str:
    """The caption in a text file: its first line with text or, with `all_lines`, every such line (joined by newlines).

    Raises ValueError naming the file for an encoding that is not certain, see `read_text`.
    """
    lines = [line.strip() for line in _LINE_BREAK.split(read_text(path)) if line.strip()]
    return "\n".join(lines if all_lines else lines[:1])


def join_caption_and_tags(caption: str | None, tags: str | None, subset: SubsetConfig) -> str:
    """One caption from the `caption` and `tags` of a metadata file.

    With wildcards the tags follow every line of a multi-line caption; tags alone are the caption.
    """
    if not caption:
        return tags or ""
    if not tags:
        return caption
    if not subset.enable_wildcard:
        return caption + subset.caption_separator + tags
    one_line_tags = tags.replace("\n", subset.caption_separator)
    lines = [line for line in caption.split("\n") if line.strip()]
    return "\n".join(line + subset.caption_separator + one_line_tags for line in lines)
