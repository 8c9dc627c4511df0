"""Dataset files accepted and refused as the original does: its recorded answers, and files made from their rules."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from library.settings.config_util import dataset_configs
from library.settings.dataset_keys import KEYS
from library.settings.problems import UsageError

DEFAULTS = {"resolution": (1024, 1024)}
FILES = 400

# The original's rules, written down from its documentation and apart from the tables of the project:
# key: type, places (g d s: general, datasets, subsets), kinds (d f m: DreamBooth, fine-tuning, masked).
RULES = """
batch_size                     side  gd  dfm
resolution                     size  gd  dfm
enable_bucket                  bool  gd  dfm
min_bucket_reso                side  gd  dfm
max_bucket_reso                side  gd  dfm
bucket_reso_steps              side  gd  dfm
bucket_no_upscale              bool  gd  dfm
network_multiplier             float gd  dfm
validation_split               float gd  dfm
validation_seed                side  gd  dfm
resize_interpolation           name  gds dfm
num_repeats                    side  gds dfm
shuffle_caption                bool  gds dfm
enable_wildcard                bool  gds dfm
color_aug                      bool  gds dfm
flip_aug                       bool  gds dfm
random_crop                    bool  gds dfm
caption_separator              text  gds dfm
keep_tokens_separator          str   gds dfm
secondary_separator            str   gds dfm
caption_prefix                 str   gds dfm
caption_suffix                 str   gds dfm
keep_tokens                    side  gds dfm
token_warmup_min               side  gds dfm
token_warmup_step              float gds dfm
face_crop_aug_range            range gds dfm
custom_attributes              table gds dfm
caption_dropout_rate           float gds dfm
caption_tag_dropout_rate       float gds dfm
caption_dropout_every_n_epochs side  gds dfm
caption_extension              str   gds dm
class_tokens                   str   gds d
cache_info                     bool  gds dm
image_dir                      text  s   dfm
is_reg                         bool  s   d
alpha_mask                     bool  s   df
metadata_file                  text  s   f
conditioning_data_dir          text  s   m
"""
SPEC = {name: (kind, places, kinds) for name, kind, places, kinds in map(str.split, RULES.strip().splitlines())}
GOOD: dict[str, list[Any]] = {
    "side": [1, 64],
    "size": [1024, [1024, 768]],
    "bool": [True, False],
    "float": [0.5, 0, 1],  # whole numbers: refused by the original for some keys, for no good reason
    "name": ["area", "lanczos"],
    "str": ["x", ""],
    "text": ["x", "y"],
    "range": [[1.0, 2.0], [1, 2]],
    "table": [{}, {"mood": 1}],
}
BAD: dict[str, list[Any]] = {
    "side": ["4", 2.5, None, [1]],
    "size": ["1024,1024", 1024.5, [1024], [1, 2, 3], [1024, "768"]],
    "bool": ["yes", 1, None],
    "float": ["0.5", None, [0.5], float("nan"), 10**400],
    "name": [3, ["area"], None],
    "str": [1, True, ["x"]],
    "text": [1, ""],
    "range": [1.0, [1.0], ["1", "2"], "1,2"],
    "table": ["x", [], 1],
}
NOT_DRAWN = ("image_dir", "metadata_file", "conditioning_data_dir", "enable_bucket")
"""Keys that make the kind of a dataset, and the one that lets sizes be judged together (tested elsewhere)."""
OPENERS: dict[str, dict[str, Any]] = {
    "d": {"image_dir": "a"},
    "f": {"metadata_file": "m"},
    "m": {"image_dir": "a", "conditioning_data_dir": "c"},
}
STRANGERS = ("foo", "shuffle_captions", "lr", "prior_loss_weight", "max_token_length", "")


def refusal(table: dict[str, Any], masked_loss: bool) -> str:
    """The message that refuses a file; empty when it is accepted."""
    try:
        dataset_configs(table, "data.toml", DEFAULTS, masked_loss=masked_loss)
    except UsageError as error:
        return str(error)
    return ""


def test_the_rules_are_about_all_keys() -> None:
    assert set(SPEC) == set(KEYS)


def test_golden_sanitizer_matrix(golden: Path) -> None:
    lines = (golden / "sanitizer_matrix.txt").read_text().splitlines()
    cases = [line for line in lines if line[:4] in ("OK  ", "ERR ")]
    assert len(cases) == 44
    masked_loss = False
    for line in cases:
        source, _, answer = line[4:].partition(" -> ")
        accepted = line.startswith("OK ")
        masked_loss = masked_loss or (accepted and "conditioning_data_dir" in source)  # recorded with it from here on
        message = refusal(json.loads(source), masked_loss)
        if "diff_output_preservation" in source:
            assert accepted and "not built yet" in message
        elif "expected float" in answer:
            assert not message, source  # an int for a float
        else:
            assert (not message) == accepted, (source, message)


def made_up(rng: random.Random) -> tuple[dict[str, Any], bool, list[tuple[str, str]]]:
    """A random file, whether --masked_loss is given, and (place, key) of every mistake put into it."""
    kind = rng.choice("dfm")
    table: dict[str, Any] = {"general": {}, "datasets": [{"subsets": [dict(OPENERS[kind]), dict(OPENERS[kind])]}]}
    places = {"g": table["general"], "d": table["datasets"][0], "s": table["datasets"][0]["subsets"][1]}
    words = {"g": "[general]", "d": "[[datasets]] 1", "s": "[[datasets]] 1 [[subsets]] 2"}
    mistakes = []
    for _ in range(rng.randrange(6)):
        place = rng.choice("gds")
        if rng.random() < 0.1:
            name, fits = rng.choice(STRANGERS), False
            value: object = 1
        else:
            name = rng.choice([name for name in SPEC if name not in NOT_DRAWN])
            type_, allowed_places, kinds = SPEC[name]
            right = rng.random() < 0.75
            value = rng.choice((GOOD if right else BAD)[type_])
            fits = right and place in allowed_places and (place == "g" or kind in kinds)
        if name not in places[place]:
            places[place][name] = value
            if not fits:
                mistakes.append((words[place], name))
    return table, kind == "m", mistakes


def test_files_made_from_the_rules() -> None:
    rng = random.Random(0)
    refused = 0
    for _ in range(FILES):
        table, masked_loss, mistakes = made_up(rng)
        message = refusal(table, masked_loss)
        assert len(message.splitlines()) == len(mistakes) + (len(mistakes) > 1), (table, message)
        for place, name in mistakes:
            assert f"data.toml {place}: {name} " in message, (table, message)
        refused += bool(mistakes)
    assert FILES * 0.3 < refused < FILES * 0.8, "the files should be of both sorts"


def with_one_key(name: str, value: object, place: str, kind: str) -> str:
    """What is said about a file of a kind with one key in one place."""
    table: dict[str, Any] = {"general": {}, "datasets": [{"subsets": [dict(OPENERS[kind])]}]}
    owner = {"g": table["general"], "d": table["datasets"][0], "s": table["datasets"][0]["subsets"][0]}
    owner[place][name] = value
    return refusal(table, kind == "m")


@pytest.mark.parametrize("name", sorted(SPEC))
def test_every_key_is_taken_where_it_may_stand_and_nowhere_else(name: str) -> None:
    type_, places, kinds = SPEC[name]
    for kind in "dfm":
        for place in "gds":
            allowed = place in places and (place == "g" or kind in kinds)
            if not allowed and place == "s" and name in NOT_DRAWN:
                continue  # it would make another kind of file
            for value in GOOD[type_]:
                assert (with_one_key(name, value, place, kind) == "") == allowed, (name, place, kind, value)
            for value in BAD[type_]:
                assert with_one_key(name, value, place, kind), (name, place, kind, value)


def resolved(name: str, kind: str, given: dict[str, Any]) -> object:
    """The value that a key ends up with; `given` has values by level: g, d, s, and c for the command line."""
    table: dict[str, Any] = {"general": {}, "datasets": [{"subsets": [dict(OPENERS[kind])]}]}
    owner = {"g": table["general"], "d": table["datasets"][0], "s": table["datasets"][0]["subsets"][0]}
    for level in set(given) - {"c"}:
        owner[level][name] = given[level]
    defaults = DEFAULTS | ({name: given["c"]} if "c" in given else {})
    (config,) = dataset_configs(table, "data.toml", defaults, masked_loss=kind == "m")
    return getattr(config.subsets[0] if "s" in SPEC[name][1] else config, name)


@pytest.mark.parametrize("name", sorted(set(SPEC) - set(NOT_DRAWN)))
def test_precedence_is_subset_dataset_general_command_line(name: str) -> None:
    type_, places, kinds = SPEC[name]
    levels = [level for level in "sdg" if level in places]
    if name not in ("is_reg", "resolution", "face_crop_aug_range"):  # no flag, or typed by the flag's own reader
        levels.append("c")
    for kind in kinds:
        for weak, strong in zip(levels[1:], levels, strict=False):
            for low in GOOD[type_]:
                for high in GOOD[type_]:
                    alone = resolved(name, kind, {strong: high})
                    assert resolved(name, kind, {strong: high, weak: low}) == alone, (name, kind, weak, strong)
                    if weak != "c":
                        assert resolved(name, kind, {weak: high}) == alone, (name, kind, weak)
