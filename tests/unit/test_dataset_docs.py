"""docs/datasets.md tells the truth: its table is the keys', and its examples are accepted."""

import re
import tomllib
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from library.settings.config_util import DatasetConfig, SubsetConfig, dataset_configs
from library.settings.dataset_keys import DATASET, GENERAL, KEYS, SUBSET

TEXT = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
ROWS = {
    cells[0].strip("`"): cells[1:]
    for line in TEXT[TEXT.index("## Keys") :].splitlines()
    if line.startswith("| `") and len(cells := [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]) == 6
}
PLACES = {"G": GENERAL, "D": DATASET, "S": SUBSET}
KINDS = {"DB": "dreambooth", "FT": "finetuning", "M": "masked"}
UNSET = ("none", "by size", "--seed", "required")
DEFAULTS = {each.name: each.default for kind in (DatasetConfig, SubsetConfig) for each in fields(kind)}


def test_the_table_has_every_key_and_no_other() -> None:
    assert set(ROWS) == set(KEYS)


@pytest.mark.parametrize("name", sorted(KEYS))
def test_a_row_says_where_a_key_may_stand_and_its_default(name: str) -> None:
    _, default, places, kinds, effect = ROWS[name]
    key, value = KEYS[name], DEFAULTS[name]
    assert tuple(PLACES[place] for place in places.split()) == key.places
    assert {KINDS[kind] for kind in kinds.replace("all", "DB FT M").split()} == set(key.kinds)
    assert effect
    if value is None:
        assert default in UNSET
    elif name == "keep_tokens_separator":
        assert (default, value) == ("none", "")
    elif value is not MISSING and name != "alpha_mask":  # a flag stands in for those
        shown = (
            str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else f"{value:g}"
        )
        assert default == shown


def test_the_examples_are_accepted() -> None:
    examples = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    assert len(examples) == 4
    kinds = []
    for example in examples:
        (config,) = dataset_configs(tomllib.loads(example), "example", {}, masked_loss=True)
        assert config.notes == ()
        kinds.append(config.kind)
    assert kinds == ["dreambooth", "dreambooth", "finetuning", "masked"]
