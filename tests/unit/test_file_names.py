"""Names of saved files and the rotation of old ones, as the original has them."""

import json
from pathlib import Path

import pytest

from library.files.file_names import (
    epoch_file_name,
    get_remove_epoch_no,
    get_remove_step_no,
    last_file_name,
    step_file_name,
)
from tools.table_checks_training import TABLE_CHECKS


def test_names_with_output_name() -> None:
    assert epoch_file_name("cat", 3) == "cat-000003.safetensors"
    assert step_file_name("cat", 1500) == "cat-step00001500.safetensors"
    assert last_file_name("cat", "ckpt") == "cat.ckpt"


def test_names_without_output_name() -> None:
    assert epoch_file_name(None, 3, "ckpt") == "epoch-000003.ckpt"
    assert step_file_name(None, 3) == "at-step00000003.safetensors"
    assert last_file_name(None) == "last.safetensors"


def test_nothing_is_removed_unless_asked() -> None:
    assert get_remove_epoch_no(100, 1, None) is None
    assert get_remove_step_no(100, 10, None) is None


def test_epochs_are_counted() -> None:
    """Saving every epoch and keeping 2: epochs 1, 2; then each new one removes the one two before it."""
    assert [get_remove_epoch_no(epoch, 1, 2) for epoch in range(1, 6)] == [None, 0, 1, 2, 3]


def test_steps_are_a_distance() -> None:
    """Saving every 10, keeping 25 steps back: 40 removes 10, for 20 is the oldest within 25 + 1 steps."""
    assert [get_remove_step_no(step, 10, 25) for step in range(10, 60, 10)] == [None, None, 0, 10, 20]


@pytest.mark.parametrize("table", ["get_remove_step_no", "get_remove_epoch_no"])
def test_recorded_tables(golden: Path, table: str) -> None:
    cases = json.loads((golden / "kohya_tables.json").read_text())[table]
    assert cases
    assert TABLE_CHECKS[table](cases) == []
    wrong = [[step, 12345] for step, _ in cases]
    assert len(TABLE_CHECKS[table](wrong)) == len(cases)
