"""Only the device floor knows what a device is called; whoever computes asks its profile how it wants things done."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMES = {"CPU", "Ascend", "GPU", "device_target", "get_device", "current_target"}
FLAGS = ROOT / "library" / "settings" / "flag_groups.py"
"""Offers the names as choices."""


def sources() -> Iterator[Path]:
    for folder in ("library", "networks"):
        yield from (path for path in (ROOT / folder).rglob("*.py") if path != FLAGS and path.parent.name != "device")


def names_in(path: Path) -> Iterator[str]:
    """Device names as texts or attributes, and modules' own names that are set from outside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in NAMES:
            yield f"{path}:{node.lineno}: {node.value!r}"
        if isinstance(node, ast.Attribute) and node.attr in NAMES:
            yield f"{path}:{node.lineno}: .{node.attr}"
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Attribute) and ast.unparse(target.value) in modules and target.attr.isupper():
                    yield f"{path}:{node.lineno}: {ast.unparse(target)} is set from outside"


def test_no_other_floor_names_a_device_or_sets_a_switch() -> None:
    assert [found for path in sources() for found in names_in(path)] == []


def test_a_name_would_be_found(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(
        "from library.graphs import kernels\n"
        "if device.name == 'CPU': pass\n"
        "kernels.LIMIT = 1\n"
        "ms.get_context('device_target')\n",
        encoding="utf-8",
    )
    assert sorted(line.split(":")[1] for line in names_in(path)) == ["2", "3", "4"]
