"""Replay of recorded tables: prompt to token ids, and what pure-Python functions of the reference returned."""

from collections.abc import Mapping
from typing import Any

from tools.replay_result import Finding, failed
from tools.table_checks import TABLE_CHECKS, check_tokens
from tools.table_checks_training import TABLE_CHECKS as TRAINING_CHECKS

ALL_CHECKS = {**TABLE_CHECKS, **TRAINING_CHECKS}
MAX_LISTED = 3


def replay_tokens(cases: list[Any]) -> list[Finding]:
    """Every case of a ``tokens.json``; ids and weights must be equal."""
    return [_finding("tokens", len(cases), _mismatches(lambda: check_tokens(cases)))]


def replay_tables(tables: Mapping[str, Any]) -> list[Finding]:
    """Every table of a ``kohya_tables.json`` that has a check; texts in it are remarks."""
    findings = []
    for name, table in tables.items():
        if isinstance(table, str):
            continue
        if name not in ALL_CHECKS:
            findings.append(Finding(name, "not built"))
            continue
        check = ALL_CHECKS[name]
        findings.append(_finding(name, len(table), _mismatches(lambda check=check, table=table: check(table))))
    return findings


def _mismatches(check: Any) -> list[str]:
    """The lines of a check; a table of another form is one mismatch."""
    try:
        return list(check())
    except (KeyError, IndexError, TypeError, ValueError) as error:
        return [f"a case cannot be run: {type(error).__name__}: {error}"]


def _finding(name: str, count: int, mismatches: list[str]) -> Finding:
    if not mismatches:
        return Finding(name, "ok", detail=f"{count} cases, all equal")
    more = f" ... and {len(mismatches) - MAX_LISTED} more" if len(mismatches) > MAX_LISTED else ""
    return failed(name, f"{len(mismatches)} mismatches: " + "; ".join(mismatches[:MAX_LISTED]) + more)
