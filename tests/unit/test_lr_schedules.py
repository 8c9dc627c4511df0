"""Learning rate curves against the recorded ones, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from library.training.lr_schedules import SCHEDULERS, LrOptions, make_lr_lambda
from tools.table_checks_training import TABLE_CHECKS


def options(scheduler: str, **changes: Any) -> LrOptions:
    return LrOptions(**{"scheduler": scheduler, "total_steps": 20, "learning_rate": 1e-4, **changes})


def curve(scheduler: str, steps: range = range(22), **changes: Any) -> list[float]:
    factor = make_lr_lambda(options(scheduler, **changes))
    return [factor(step) for step in steps]


def test_recorded_curves(golden: Path) -> None:
    table = json.loads((golden / "kohya_tables.json").read_text())["lr_lambda"]
    assert table["curves"]
    assert TABLE_CHECKS["lr_lambda"](table) == []


def test_the_check_notices_a_wrong_number(golden: Path) -> None:
    table = json.loads((golden / "kohya_tables.json").read_text())["lr_lambda"]
    table["curves"]["cosine W=4"][7] += 1e-9
    assert len(TABLE_CHECKS["lr_lambda"](table)) == 1


def test_constant() -> None:
    assert curve("constant") == [1.0] * 22


def test_first_step_of_a_warmup_has_rate_zero() -> None:
    assert curve("constant_with_warmup", range(6), warmup_steps=4) == [0, 0.25, 0.5, 0.75, 1, 1]


def test_steps_as_a_part_of_the_run() -> None:
    assert curve("linear", warmup_steps=0.2) == curve("linear", warmup_steps=4)
    assert curve("linear", warmup_steps=0.24) == curve("linear", warmup_steps=4)
    settings = {"min_lr_ratio": 0.1, "scheduler_args": {"decay_type": "linear"}}
    parts = curve("warmup_stable_decay", decay_steps=0.3, **settings)
    assert parts == curve("warmup_stable_decay", decay_steps=6, **settings)
    assert parts[13:17] == pytest.approx([1, 1, 0.85, 0.7])


def test_scheduler_args() -> None:
    assert curve("polynomial", scheduler_args={"lr_end": 5e-5})[20] == 0.5
    assert curve("cosine_with_min_lr", scheduler_args={"min_lr": 1e-5}) == pytest.approx(
        curve("cosine_with_min_lr", min_lr_ratio=0.1)
    )
    assert curve("cosine", scheduler_args={"num_cycles": 1})[10] == pytest.approx(0)
    rules = {"step_rules": "1:2,0.5:4,0.25"}
    assert curve("piecewise_constant", range(6), scheduler_args=rules) == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_warmup_of_warmup_stable_decay_starts_at_the_lowest_rate() -> None:
    straight = curve("warmup_stable_decay", range(5), warmup_steps=4, min_lr_ratio=0.2)
    assert straight == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])
    bent = curve(
        "warmup_stable_decay", range(5), warmup_steps=4, min_lr_ratio=0.2, scheduler_args={"warmup_type": "cosine"}
    )
    assert bent[1] < straight[1]
    assert bent[2] == pytest.approx(straight[2])
    assert bent[3] > straight[3]


def test_no_curve_is_negative_or_above_the_rate() -> None:
    extra = {"cosine_with_min_lr": {"min_lr_ratio": 0.1}, "piecewise_constant": {"scheduler_args": {"step_rules": "1"}}}
    for name in SCHEDULERS:
        for total in (1, 20):
            factors = curve(name, range(3 * total), total_steps=total, **extra.get(name, {}))
            assert all(0 <= factor <= 1 for factor in factors), name


@pytest.mark.parametrize(
    ("scheduler", "changes", "message"),
    [
        ("constant", {"warmup_steps": 5}, "--lr_warmup_steps 5: constant has no warmup; use constant_with_warmup"),
        ("constant", {"warmup_steps": 0.1}, "constant has no warmup"),
        ("piecewise_constant", {"warmup_steps": 5}, "piecewise_constant has no warmup"),
        ("rex", {}, "--lr_scheduler rex: there is no such schedule; allowed are constant, "),
        ("adafactor", {}, "--lr_scheduler adafactor: the Adafactor optimizer"),
        ("reduce_lr_on_plateau", {}, "fails in the original too; use"),
        ("cosine_warmup_with_min_lr", {}, "use cosine_with_min_lr"),
        ("cosine_with_min_lr", {}, "neither is given"),
        ("cosine_with_min_lr", {"min_lr_ratio": 0.1, "scheduler_args": {"min_lr": 1e-5}}, "both are given"),
        ("cosine_with_min_lr", {"scheduler_args": {"min_lr": "low"}}, "min_lr='low': it must be a number"),
        ("polynomial", {"learning_rate": 1e-8}, "its lr_end 1e-07 must be below --learning_rate 1e-08"),
        ("linear", {"scheduler_args": {"a": 1, "b": 2}}, "a=...: linear does not take it; allowed: nothing\n.*b=..."),
        ("cosine", {"scheduler_args": {"cycles": 1}}, "cosine does not take it; allowed: num_cycles"),
        (
            "warmup_stable_decay",
            {"scheduler_args": {"decay_type": "x"}},
            "decay_type=x: allowed are linear, cosine, 1-",
        ),
        ("piecewise_constant", {}, "it must be FACTOR:STEP"),
        ("piecewise_constant", {"scheduler_args": {"step_rules": "1:2:3,1"}}, "it must be FACTOR:STEP"),
    ],
)
def test_what_is_refused(scheduler: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_lr_lambda(options(scheduler, **changes))
