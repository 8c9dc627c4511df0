"""The house as it was planned: who may import whom, who may name a device, how long files and functions may be.

The floors and how they are read are in ``tools/draw_floors.py``; what they are for is in ``docs/design.md``.
"""

import ast
import re
import statistics
from collections.abc import Callable, Iterator, Mapping

import pytest

from tools.draw_floors import FLOORS, HOUSE, PICTURE, ROOF, Source, draw, floors_imported, imports_of, sources

WITHOUT_MINDSPORE = ("settings", "files", "data", "curation")
NETWORK_STANDS_ON = ("files", "device", "graphs")
UNDER_THE_RUN = FLOORS[: FLOORS.index("runs")]
"""What may not know of networks: families, and all that they stand on."""
FAMILY_BASE = "library.families.base"
FRAMEWORK = ("mindspore", "mindone")
DEVICE_NAMES = ("Ascend", "CPU", "GPU")
MAX_FILE_LINES, MEDIAN_FILE_LINES = 500, 120
FUNCTION_LINES = 60
SCRIPT_LINES = {"sdxl_train_network": 80}
"""Scripts that are one screen: flags, family, one call."""
SDXL = re.compile(r"sdxl|(?<!stabilityai/)stable.diffusion.xl", re.IGNORECASE)
"""A hub name may serve as an example."""

SOURCES = tuple(sources())
NAMES = frozenset(source.name for source in SOURCES)
LIBRARY = tuple(source for source in SOURCES if source.name.startswith("library"))
BELOW_ROOF = tuple(source for source in SOURCES if source.folder not in ROOF)


def family_of(module: str) -> str:
    """The family that a module belongs to; the common base is none."""
    parts = module.split(".")
    return parts[2] if module.startswith("library.families.") and not module.startswith(FAMILY_BASE) else ""


def import_problem(source: Source, imported: str) -> str | None:
    """What is wrong with one import, if anything."""
    here, there = source.folder, Source(imported, "").folder
    if here in ROOF:
        return None
    if imported.split(".")[0] in FRAMEWORK:
        return f"no MindSpore in {here}" if here in WITHOUT_MINDSPORE else None
    if not imported.startswith(("library", "networks", "tools")) and imported not in NAMES:
        return None  # not ours
    if there in ROOF:
        return "a program is imported from below"
    if (family := family_of(imported)) and family_of(source.name) != family:
        return "only programs name a family"
    if here == "networks" and there not in (*NETWORK_STANDS_ON, "networks"):
        return f"a network stands on {', '.join(NETWORK_STANDS_ON)} only"
    if there == "networks" and here in UNDER_THE_RUN:
        return "a network is known to the run only"
    if there == "curation" and here != "curation":
        return "curation is for tools only"
    if here not in FLOORS or there not in FLOORS or FLOORS.index(there) <= FLOORS.index(here):
        return None
    return f"{there} is not below {here}"


def test_imports_go_downwards() -> None:
    problems = [
        f"{source.name} imports {imported}: {problem}"
        for source in SOURCES
        for imported in sorted(imports_of(source, NAMES))
        if (problem := import_problem(source, imported))
    ]
    assert problems == []


@pytest.mark.parametrize(
    ("importer", "line", "problem"),
    [
        ("library.data.buckets", "import mindspore as ms", "no MindSpore in data"),
        ("library.files.hashes", "def f():\n    from mindone.diffusers import x", "no MindSpore in files"),
        ("library.files.hashes", "from library.data.buckets import Size", "data is not below files"),
        ("library.settings.flags", "from library.files.hashes import sha256", "files is not below settings"),
        ("library.models.unet", "from library.training import step", "training is not below models"),
        ("library.device.setup", "from library.graphs.block import Block", "graphs is not below device"),
        ("library.training.step", "from library.families.base import Family", "families is not below training"),
        ("library.families.sdxl.family", "from library.runs.saver import Saver", "runs is not below families"),
        ("library.families.sdxl.family", "from networks.lora import x", "a network is known to the run only"),
        ("library.training.step", "import networks.network_base", "a network is known to the run only"),
        ("networks.lora", "from library.models import unet", "a network stands on files, device, graphs only"),
        ("networks.lora", "from library.families.base import Family", "a network stands on files, device, graphs only"),
        ("library.runs.loop", "from library.families.sdxl.family import SdxlFamily", "only programs name a family"),
        ("library.runs.loop", "import library.families.sdxl.family", "only programs name a family"),
        ("library.runs.loop", "from library.families import sdxl", "only programs name a family"),
        ("library.families.sd.family", "from library.families.sdxl.keys import PARTS", "only programs name a family"),
        ("networks.lora", "from library.families.sdxl import keys", "only programs name a family"),
        ("library.runs.loop", "import tools.replay", "a program is imported from below"),
        ("library.runs.loop", "import sdxl_train_network", "a program is imported from below"),
        ("library.data.dataset", "from library.curation.image_tree import x", "curation is for tools only"),
        ("library.runs.caching", "from library.curation.image_tree import x", "curation is for tools only"),
        ("library.data.dataset", "from library.settings.config_util import SubsetConfig", None),
        ("library.curation.image_tree", "from library.data.buckets import Size", None),
        ("library.runs.loop", "from networks.network_base import Network", None),
        ("library.runs.loop", "from library.families.base import Family", None),
        ("library.families.sdxl.family", "from library.families.base import Family", None),
        ("library.families.sdxl.family", "from library.families.sdxl.keys import PARTS", None),
        ("networks.lora", "from library.graphs.block import Block", None),
        ("library.training.step", "from library.graphs.block import Block", None),
        ("tools.replay", "from library.families.sdxl.family import SdxlFamily", None),
        ("sdxl_train_network", "from library.families.sdxl.family import SdxlFamily", None),
    ],
)
def test_a_wrong_import_is_found(importer: str, line: str, problem: str | None) -> None:
    source = Source(importer, line)
    assert [import_problem(source, imported) for imported in imports_of(source, NAMES)] == [problem]


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
    assert find_cycle({source.name: imports_of(source, NAMES) & NAMES for source in SOURCES}) == []


def test_a_circle_is_found() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


def test_every_folder_has_a_floor() -> None:
    folders = {name.split(".")[1] for name in NAMES if name.startswith("library.")}
    assert folders == set(FLOORS)


# --- the picture of the floors ----------------------------------------------------------------------------------------
def test_the_picture_of_the_floors_is_not_old() -> None:
    """Byte for byte: python tools/draw_floors.py makes it again."""
    assert PICTURE.read_text(encoding="utf-8") == draw(SOURCES)


def test_the_picture_shows_an_import_and_only_that() -> None:
    texts = {
        "library.runs": '"""Runs."""',
        "library.runs.loop": "from library.training.step import s",
        "library.training.step": "",
    }
    program = tuple(Source(name, text) for name, text in texts.items())
    assert {row: others for row, others in floors_imported(program).items() if others} == {"runs": {"training"}}
    picture = draw(program)
    assert picture.count("<circle cx") == 1
    assert picture.count('<circle class="self"') == len(HOUSE)
    assert ">Runs</text>" in picture


# --- who may know what ------------------------------------------------------------------------------------------------
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


def texts_in_code(source: Source, *, constants: bool) -> Iterator[tuple[int, str]]:
    """(line, text) of every name in a file's code and, if asked for, of its text constants; docstrings are no code."""
    prose = {id(node.value) for node in ast.walk(source.tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(source.tree):
        if constants and isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.lineno, node.value
        for field in ("id", "attr", "arg", "name", "module", "asname"):
            if isinstance(text := getattr(node, field, None), str):
                yield getattr(node, "lineno", 0), text


def test_only_its_family_knows_sdxl() -> None:
    """In code, that is; comments may say what is known of it. Settings' messages may name the script and its model."""
    others = [source for source in LIBRARY if family_of(source.name) != "sdxl"]
    found = [
        f"{source.name}:{line}: {text}"
        for source in others
        for line, text in texts_in_code(source, constants=source.folder != "settings")
        if SDXL.search(text)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ('"""SDXL\'s."""\nx = 1\n"""Of SDXL."""  # sdxl', 0),
        ("from library.families.sdxl import keys", 1),
        ("SdxlFamily()", 1),
        ("def f(x): return x.is_sdxl", 1),
        ("def sdxl(x): return 0", 1),
        ('NAME = "stable-diffusion-xl-v1-base"', 1),
        ('NAME = f"{x}_sdxl.npz"', 1),
        ('raise ValueError("give a hub name like stabilityai/stable-diffusion-xl-base-1.0")', 0),
    ],
)
def test_sdxl_in_code_is_found(code: str, found: int) -> None:
    source = Source("library.files.example", code)
    assert sum(bool(SDXL.search(text)) for _, text in texts_in_code(source, constants=True)) == found


def test_only_scripts_and_tools_parse_arguments() -> None:
    """The parser itself is in settings; nothing else in library or networks sees a command line."""
    below = [source for source in BELOW_ROOF if source.folder != "settings"]

    def parses(node: ast.AST) -> bool:
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Name) and called.id in ("parse_train_args", "read_train_args"):
            return True
        return isinstance(node, ast.Attribute) and node.attr == "argv"

    assert [s.name for s in below if "argparse" in imports_of(s, NAMES)] == []
    assert [at for source in below for at in lines_where(source, parses)] == []


# --- style ------------------------------------------------------------------------------------------------------------
def test_library_and_networks_follow_the_rules_of_style() -> None:
    def breaks_a_rule(node: ast.AST) -> bool:
        if isinstance(node, ast.ExceptHandler):
            return node.type is None
        return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "hasattr")

    assert [at for source in BELOW_ROOF for at in lines_where(source, breaks_a_rule)] == []


def test_files_are_short_and_plain() -> None:
    lengths = {source.name: source.text.count("\n") for source in SOURCES}
    assert {name: length for name, length in lengths.items() if length > MAX_FILE_LINES} == {}
    assert statistics.median(lengths.values()) < MEDIAN_FILE_LINES
    assert {name: lengths[name] for name, limit in SCRIPT_LINES.items() if lengths[name] >= limit} == {}
    assert [source.name for source in SOURCES if not source.text.isascii()] == []


def test_every_package_and_module_says_what_it_is() -> None:
    assert [source.name for source in SOURCES if not ast.get_docstring(source.tree)] == []
    packages = {source.name.rpartition(".")[0] for source in SOURCES if "." in source.name}
    assert sorted(packages - NAMES) == []


def long_functions(source: Source) -> list[str]:
    """Functions and methods of a file that are not below the limit."""
    functions = [n for n in ast.walk(source.tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = [(node.name, (node.end_lineno or 0) - node.lineno + 1) for node in functions]
    return [f"{source.name}.{name}: {length} lines" for name, length in lengths if length >= FUNCTION_LINES]


def test_functions_are_short() -> None:
    """The loop and the scripts' functions too."""
    assert [found for source in SOURCES for found in long_functions(source)] == []


def test_a_long_function_is_found() -> None:
    method = "class A:\n    def f(self):\n" + "        x = 1\n" * (FUNCTION_LINES - 2)
    assert long_functions(Source("a", method)) == []
    assert long_functions(Source("a", method + "        x = 1\n")) == [f"a.f: {FUNCTION_LINES} lines"]
