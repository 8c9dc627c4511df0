"""Recorded tables of the reference against this project's functions: one check per table, exact.

A check takes a table as it stands in `kohya_tables.json` and returns one line per mismatch; an empty list means that
every case there is reproduced. `TABLE_CHECKS` maps the table's name to its check; add a table by adding an entry.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from library.curation.caption_cleaning import clean_caption, clean_tags
from library.data import buckets
from library.data.scan.validation import split_positions
from library.data.text.captions import CaptionMoment, process_caption, tag_frequency
from library.data.text.prompt_syntax import line_to_prompt_dict, parse_prompt_attention
from library.families.sdxl.tokenizers import sdxl_tokenizers
from library.settings.config_util import SubsetConfig

Check = Callable[[Any], list[str]]


def _compare(what: str, got: object, expected: object) -> list[str]:
    return [] if got == expected else [f"{what}: got {got!r}, expected {expected!r}"]


def check_make_bucket_resolutions(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Bucket lists; a case is {args: [[w, h], min, max, steps], result: [[w, h], ...]}."""
    mismatches = []
    for case in cases:
        reso, *limits = case["args"]
        got = [list(size) for size in buckets.make_bucket_resolutions(tuple(reso), *limits)]
        mismatches += _compare(f"make_bucket_resolutions{tuple(case['args'])}", got, case["result"])
    return mismatches


def check_select_bucket(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Bucket, resized size, aspect error and crop of many image sizes; a case without `bucket` has to be refused."""
    mismatches = []
    for group in groups:
        reso = tuple(group["resolution"])
        predefined = buckets.make_bucket_resolutions(reso, group["min"], group["max"], group["steps"])
        for case in group["cases"]:
            image = tuple(case["image"])
            what = f"select_bucket {image} no_upscale={group['no_upscale']} at {reso} steps {group['steps']}"
            try:
                if group["no_upscale"]:
                    place = buckets.select_bucket_no_upscale(image, reso[0] * reso[1], group["steps"])
                else:
                    place = buckets.select_bucket(image, predefined)
            except ValueError as error:
                mismatches += [f"{what}: refused ({error})"] if "bucket" in case else []
                continue
            got = {
                "bucket": list(place.bucket),
                "resized": list(place.resized),
                "ar_error": place.ar_error,
                "crop_ltrb": list(buckets.crop_ltrb(place.bucket, image)),
            }
            expected = {key: case[key] for key in got if key in case}
            expected = expected if "bucket" in case else {"an error": case.get("error")}
            mismatches += _compare(what, {key: got[key] for key in got if key in expected}, expected)
    return mismatches


def check_process_caption(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Captions with the seed of `random`; epoch and step of the run are in `dataset`, 100 steps in all."""
    mismatches = []
    for case in cases:
        run = case["dataset"]
        moment = CaptionMoment(
            epoch=run.get("current_epoch", 0),
            step=run.get("current_step", 0),
            max_train_steps=run.get("max_train_steps", 100),
        )
        subset = SubsetConfig(image_dir="images", metadata_file=None, **case["subset"])
        got = process_caption(case["caption"], subset, moment, random.Random(case["random_seed"]))
        what = f"process_caption {case['caption']!r} {case['subset']} {run} seed {case['random_seed']}"
        mismatches += _compare(what, got, case["result"])
    return mismatches


def check_set_tag_frequency(table: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Tag counts per folder. The table holds no input: captions with these counts are written, then counted."""
    mismatches = []
    for folder, counts in table.items():
        captions = [
            " , ".join(tag.upper() if number % 2 else tag for tag, count in counts.items() if count > number)
            for number in range(max(counts.values(), default=0))
        ]
        mismatches += _compare(f"set_tag_frequency {folder}", tag_frequency(captions), dict(counts))
    return mismatches


def check_line_to_prompt_dict(table: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Prompt lines with options; the table maps a line to its options."""
    return [
        mismatch
        for line, expected in table.items()
        for mismatch in _compare(f"line_to_prompt_dict {line!r}", line_to_prompt_dict(line), expected)
    ]


def check_parse_prompt_attention(table: Mapping[str, Sequence[Sequence[Any]]]) -> list[str]:
    """Weighted prompts; the table maps a prompt to its [text, weight] pieces."""
    mismatches = []
    for prompt, expected in table.items():
        got = [list(piece) for piece in parse_prompt_attention(prompt)]
        mismatches += _compare(f"parse_prompt_attention {prompt!r}", got, expected)
    return mismatches


def check_shuffle_buckets(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Epoch orders, each a shuffle of the one before; the first starts from sorted buckets at epoch 0, seed 0."""
    mismatches: list[str] = []
    if not cases:
        return mismatches
    contents = [sorted(bucket) for bucket in cases[0]["buckets"]]
    order = sorted((bucket, k) for bucket, k in cases[0]["buckets_indices"])
    order, contents = buckets.shuffle_as_kohya(order, contents, random.Random(0))
    epoch = 0
    for case in cases:
        while epoch < case["epoch"]:
            epoch += 1
            order, contents = buckets.shuffle_as_kohya(order, contents, random.Random(case["dataset_seed"] + epoch))
        got = [[list(entry) for entry in order], ["".join(content) for content in contents]]
        mismatches += _compare(f"shuffle_buckets epoch {epoch}", got, [case["buckets_indices"], case["buckets"]])
    return mismatches


def check_split_train_val(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names i0, i1, ... in training and validation; ours has no name in both, which the reference can have."""
    mismatches = []
    for case in cases:
        parts = split_positions(case["n"], case["split"], case["seed"])
        got = [[f"i{position}" for position in part] for part in parts]
        expected = [case["train"], [name for name in case["val"] if name not in case["train"]]]
        mismatches += _compare(f"split_train_val n={case['n']} split={case['split']}", got, expected)
    return mismatches


def check_tokens(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Token ids (and weights) of `tokens.json` for both tokenizers, every max_token_length."""
    mismatches = []
    for case in cases:
        for number, tokenizer in enumerate(sdxl_tokenizers(), start=1):
            text, length = case["text"], case["max_token_length"]
            what = f"tokens of text encoder {number}, max_token_length {length}, {text[:60]!r}"
            if case.get("weighted"):
                ids, weights = tokenizer.ids_and_weights(text, length)
                if weights.tolist() != case[f"weights{number}"]:
                    mismatches.append(f"{what}: other weights")
            else:
                ids = tokenizer.ids(text, length)
            if ids.tolist() != case[f"ids{number}"]:
                mismatches.append(f"{what}: other ids")
    return mismatches


def check_clean_tags(cases: Sequence[Mapping[str, str]]) -> list[str]:
    """Tags before and after tidying."""
    return [
        line for case in cases for line in _compare(f"clean_tags {case['in']!r}", clean_tags(case["in"]), case["out"])
    ]


def check_clean_caption(cases: Sequence[Mapping[str, str]]) -> list[str]:
    """Captions before and after tidying."""
    return [
        line
        for case in cases
        for line in _compare(f"clean_caption {case['in']!r}", clean_caption(case["in"]), case["out"])
    ]


TABLE_CHECKS: dict[str, Check] = {
    "make_bucket_resolutions": check_make_bucket_resolutions,
    "select_bucket": check_select_bucket,
    "process_caption": check_process_caption,
    "set_tag_frequency": check_set_tag_frequency,
    "line_to_prompt_dict": check_line_to_prompt_dict,
    "parse_prompt_attention": check_parse_prompt_attention,
    "shuffle_buckets": check_shuffle_buckets,
    "split_train_val": check_split_train_val,
    "clean_tags": check_clean_tags,
    "clean_caption": check_clean_caption,
}
