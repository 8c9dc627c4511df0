"""The house as it was planned: who may import whom, who may name a device, how long files and functions may be."""

import ast
import re
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

GROUND = ("settings", "data", "files")
FLOORS = {"settings": 0, "data": 0, "files": 0, "device": 1, "models": 2, "training": 3, "runs": 4}
"""Folder of library -> floor; a file imports from the floors below its own, or from its own folder."""
NETWORK_STANDS_ON = ("files", "device")
FAMILY = re.compile(r"library\.(settings|data|files|device|models|training)\.|library\.runs\.\w+_train_util$")
"""What may not know of networks: a family, and all that it stands on."""
FRAMEWORK = ("mindspore", "mindone")
DEVICE_NAMES = ("Ascend", "CPU", "GPU")
MAX_FILE_LINES, MEDIAN_FILE_LINES = 500, 200
MAX_FUNCTION_LINES, MAX_LOOP_LINES = 60, 100
LOOP = ("sdxl_train_network", "train")


@dataclass(frozen=True)
class Source:
    """One Python file of the project."""

    name: str
    """Dotted: ``library.models.unet``, ``tools.replay``, ``sdxl_train_network``."""
    text: str

    @property
    def tree(self) -> ast.Module:
        """Its syntax."""
        return ast.parse(self.text)

    @property
    def folder(self) -> str:
        """Folder of library; else ``networks``, ``tools`` or, for a script, nothing."""
        parts = self.name.split(".")
        if parts[0] == "library":
            return parts[1] if len(parts) > 2 or parts[-1] in FLOORS else ""
        return parts[0] if len(parts) > 1 else ""


def sources() -> Iterator[Source]:
    """Every file of the project but the tests."""
    below = (path for folder in ("library", "networks", "tools") for path in ROOT.glob(f"{folder}/**/*.py"))
    for path in sorted([*ROOT.glob("*.py"), *below]):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        yield Source(name, path.read_text(encoding="utf-8"))


SOURCES = tuple(sources())
NAMES = frozenset(source.name for source in SOURCES)


def imports_of(source: Source) -> set[str]:
    """Modules that a file imports anywhere, late imports and those for type checking included."""
    found = set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{source.name}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & NAMES) or {node.module}
    return found


def floor_problem(source: Source, imported: str) -> str | None:
    """What is wrong with one import, if anything."""
    if source.folder in GROUND and imported.split(".")[0] in FRAMEWORK:
        return "MindSpore below the device"
    target = Source(imported, "").folder
    if imported.startswith("networks") and FAMILY.match(source.name):
        return "a family imports a network"
    if source.folder == "networks" and imported.startswith("library") and target not in NETWORK_STANDS_ON:
        return f"a network stands on {' and '.join(NETWORK_STANDS_ON)} only"
    if source.name.startswith(("library", "networks")) and imported.startswith("tools"):
        return "a tool is imported from below"
    if source.folder not in FLOORS or target not in FLOORS:
        return None
    if target == source.folder or (source.folder in GROUND and target in GROUND):
        return None
    return None if FLOORS[target] < FLOORS[source.folder] else f"{target} is not below {source.folder}"


def test_imports_go_downwards() -> None:
    problems = [
        f"{source.name} imports {imported}: {problem}"
        for source in SOURCES
        for imported in sorted(imports_of(source))
        if (problem := floor_problem(source, imported))
    ]
    assert problems == []


@pytest.mark.parametrize(
    ("importer", "line", "problem"),
    [
        ("library.data.buckets", "import mindspore as ms", "MindSpore below the device"),
        ("library.files.hashes", "def f():\n    from mindone.diffusers import x", "MindSpore below the device"),
        ("library.models.unet", "from library.training import optimizers", "training is not below models"),
        ("library.graphs.kernels", "from library.graphs.block import Block", "models is not below device"),
        ("library.families.sdxl.family", "from networks.network_base import Network", "a family imports a network"),
        ("networks.lora", "from library.models import unet", "a network stands on files and device only"),
        ("library.runs.run_setup", "import tools.replay", "a tool is imported from below"),
        ("library.data.dataset", "from library.settings.config_util import SubsetConfig", None),
        ("library.runs.run_setup", "from networks.network_base import Network", None),
        ("networks.lora", "from library.device import kernels", None),
        ("library.training.step", "from library.graphs.block import Block", None),
    ],
)
def test_a_wrong_import_is_found(importer: str, line: str, problem: str | None) -> None:
    source = Source(importer, line)
    assert [floor_problem(source, imported) for imported in imports_of(source)] == [problem]


def find_cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """Some modules that import each other in a circle, or nothing."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        for imported in sorted(graph.get(name, set())):
            if cycle := visit(imported, [*path, name]):
                return cycle
        done.add(name)
        return []

    return next((cycle for name in graph if (cycle := visit(name, []))), [])


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert find_cycle({source.name: imports_of(source) & NAMES for source in SOURCES}) == []


def test_a_circle_is_found() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


def lines_where(source: Source, holds: Callable[[ast.AST], bool]) -> list[str]:
    """Where in a file a kind of syntax stands."""
    return [f"{source.name}:{getattr(node, 'lineno', 0)}" for node in ast.walk(source.tree) if holds(node)]


def names_a_device(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value in DEVICE_NAMES


def test_only_the_device_folder_names_a_device() -> None:
    """Settings name the choices of --device; messages may speak of devices."""
    found = [at for s in SOURCES if s.folder not in ("device", "settings") for at in lines_where(s, names_a_device)]
    assert found == []
    assert any(lines_where(source, names_a_device) for source in SOURCES if source.folder == "device")


def test_only_scripts_and_tools_parse_arguments() -> None:
    """The parser itself is in settings; nothing else in library or networks sees a command line."""
    below = [s for s in SOURCES if s.name.startswith(("library.", "networks")) and s.folder != "settings"]

    def parses(node: ast.AST) -> bool:
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Name) and called.id in ("parse_train_args", "read_train_args"):
            return True
        return isinstance(node, ast.Attribute) and node.attr == "argv"

    assert [s.name for s in below if "argparse" in imports_of(s)] == []
    assert [at for source in below for at in lines_where(source, parses)] == []


def test_library_and_networks_follow_the_rules_of_style() -> None:
    def breaks_a_rule(node: ast.AST) -> bool:
        if isinstance(node, ast.ExceptHandler):
            return node.type is None
        return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "hasattr")

    below = [source for source in SOURCES if source.name.startswith(("library", "networks"))]
    assert [at for source in below for at in lines_where(source, breaks_a_rule)] == []


def test_files_are_short_and_plain() -> None:
    lengths = {source.name: source.text.count("\n") for source in SOURCES}
    assert {name: length for name, length in lengths.items() if length > MAX_FILE_LINES} == {}
    assert statistics.median(lengths.values()) < MEDIAN_FILE_LINES
    assert [source.name for source in SOURCES if not source.text.isascii()] == []


def test_every_package_and_module_says_what_it_is() -> None:
    assert [source.name for source in SOURCES if not ast.get_docstring(source.tree)] == []
    packages = {path.parent for name in ("library", "networks", "tools") for path in (ROOT / name).glob("**/*.py")}
    assert [str(folder) for folder in packages if not (folder / "__init__.py").is_file()] == []


def test_functions_are_short() -> None:
    long = []
    for source in SOURCES:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                limit = MAX_LOOP_LINES if (source.name, node.name) == LOOP else MAX_FUNCTION_LINES
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > limit:
                    long.append(f"{source.name}.{node.name}: {length} lines")
    assert long == []
