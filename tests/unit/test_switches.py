"""No module has a switch that another sets: in what devices differ is a field of ``DeviceProfile``."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def switches_set(source: str) -> Iterator[int]:
    """Lines that assign to another module's constant, or declare one of their own ``global``."""
    tree = ast.parse(source)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {alias.asname or alias.name for node in imports for alias in node.names}
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else []
        for target in targets:
            if isinstance(target, ast.Attribute) and target.attr.isupper() and ast.unparse(target.value) in modules:
                yield target.lineno
        if isinstance(node, ast.Global):
            yield node.lineno


def test_nobody_sets_anothers_switch() -> None:
    files = [
        *(path for folder in ("library", "networks") for path in (ROOT / folder).rglob("*.py")),
        *ROOT.glob("*.py"),
    ]
    found = [f"{path}:{line}" for path in files for line in switches_set(path.read_text(encoding="utf-8"))]
    assert found == []


def test_one_that_does_would_be_found() -> None:
    source = (
        "from library.graphs import kernels\nLIMIT = 1\nkernels.LIMIT = 2\ndef f():\n    global LIMIT\n    LIMIT = 3\n"
    )
    assert list(switches_set(source)) == [3, 5]
