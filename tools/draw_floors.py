"""Draw the floors of this house, and which of them import which, as the program's own imports have it.

python tools/draw_floors.py        # writes docs/floors.svg

``tests/unit/test_layers.py`` reads the imports with what is here, holds the rules, and fails when the picture is old.
"""

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "floors.svg"

FLOORS = (*("settings", "files", "data", "curation", "device", "graphs", "models", "training", "families", "runs"),)
"""Folders of library from the ground up; a file imports from the floors below its own, or from its own."""
ROOF = ("scripts", "tools")
"""What stands on everything: the programs in the root of the repository, and those in tools."""
HOUSE = (*FLOORS[:6], "networks", *FLOORS[6:], *ROOF)
"""Rows of the picture, from the ground up. Networks stand beside the house, on some of its floors."""
SCRIPTS_SAY = "Programs: flags, family, one call."

WIDTH, LEFT, ROW, GAP, HEAD, CELL = 1040, 20, 56, 8, 100, 30
BOX = 600
STYLE = (
    "text{font-family:sans-serif;fill:#222}.name{font-size:16px;font-weight:bold}.says{font-size:12px}"
    ".rooms{font-size:11px;fill:#555}rect{fill:#f4f1ea;stroke:#8a8374}.beside{fill:#eaf0f4;stroke-dasharray:4 3}"
    ".roof{fill:#f4eaea}.paper{fill:#fff;stroke:none}circle{fill:#3b6ea5}.self{fill:#fff;stroke:#b5ae9f}"
    "line{stroke:#ddd8cc}.head{font-size:12px}"
)


@dataclass(frozen=True)
class Source:
    """One Python file of the project."""

    name: str
    """Dotted: ``library.models.unet``, ``tools.replay``, ``sdxl_train_network``."""
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """Its syntax."""
        return ast.parse(self.text)

    @property
    def folder(self) -> str:
        """Its row: a folder of library, ``networks``, ``tools`` or ``scripts``; nothing for library itself."""
        parts = self.name.split(".")
        if parts[0] == "library":
            return parts[1] if len(parts) > 1 and parts[1] in FLOORS else ""
        return parts[0] if parts[0] in ("networks", "tools") else "scripts"


def sources() -> Iterator[Source]:
    """Every file of the program: library, networks, tools and the scripts, in the order of their paths."""
    below = (path for folder in ("library", "networks", "tools") for path in ROOT.glob(f"{folder}/**/*.py"))
    for path in sorted([*ROOT.glob("*.py"), *below]):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        yield Source(name, path.read_text(encoding="utf-8"))


def imports_of(source: Source, names: Iterable[str]) -> set[str]:
    """Modules that a file imports anywhere, late imports and those for type checking included.

    Args:
        source: the file.
        names: all modules of the program; ``from library.models import unet`` imports ``library.models.unet``.
    """
    known, found = frozenset(names), set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{source.name}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & known) or {node.module}
    return found


def floors_imported(program: Sequence[Source]) -> dict[str, set[str]]:
    """Row of the picture -> the other rows that its files import."""
    rows = {source.name: source.folder for source in program}
    found: dict[str, set[str]] = {row: set() for row in HOUSE}
    for source in program:
        if source.folder:
            found[source.folder] |= {rows[name] for name in imports_of(source, rows) if rows.get(name)}
    return {row: others - {row} for row, others in found.items()}


def draw(program: Sequence[Source]) -> str:
    """The picture as SVG text: a box for each row, and a dot in the column of each row that it imports."""
    imported, texts = floors_imported(program), {source.name: source for source in program}
    rows = tuple(reversed(HOUSE))
    height = HEAD + len(rows) * (ROW + GAP) + GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{height}"/>',
        f'<text class="says" x="{LEFT}" y="{HEAD - 12}">A dot: this row imports that column. A ring: itself. '
        "Imports go downwards, so dots lie right of the rings.</text>",
    ]
    for column, name in enumerate(rows):
        x = LEFT + BOX + 30 + column * CELL
        parts.append(f'<text class="head" transform="translate({x + 4},{HEAD - 8}) rotate(-60)">{name}</text>')
        parts.append(f'<line x1="{x}" y1="{HEAD}" x2="{x}" y2="{height - GAP}"/>')
    for number, name in enumerate(rows):
        parts += _row(name, HEAD + number * (ROW + GAP), texts)
        y = HEAD + number * (ROW + GAP) + ROW // 2
        for column, other in enumerate(rows):
            kind = "" if other in imported[name] else ' class="self"'
            if other in imported[name] or other == name:
                parts.append(f'<circle{kind} cx="{LEFT + BOX + 30 + column * CELL}" cy="{y}" r="6"/>')
    return "\n".join([*parts, "</svg>", ""])


def _row(name: str, top: int, texts: Mapping[str, Source]) -> Iterator[str]:
    """One box with its name, what it says of itself, and its rooms."""
    kind = {"networks": ' class="beside"', "scripts": ' class="roof"', "tools": ' class="roof"'}.get(name, "")
    yield f'<rect{kind} x="{LEFT}" y="{top}" width="{BOX}" height="{ROW}"/>'
    yield f'<text class="name" x="{LEFT + 12}" y="{top + 24}">{name}</text>'
    package = f"library.{name}" if name in FLOORS else name
    says = (ast.get_docstring(texts[package].tree) or "").split(". ")[0] if package in texts else SCRIPTS_SAY
    yield f'<text class="says" x="{LEFT + 12}" y="{top + 44}">{escape(says.rstrip("."))}</text>'
    inner = {module.rpartition(".")[0] for module in texts if module.startswith(package + ".")} - {package}
    rooms = [room.removeprefix(package + ".") for room in sorted(inner)]
    if rooms:
        yield f'<text class="rooms" x="{LEFT + 110}" y="{top + 24}">rooms: {", ".join(rooms)}</text>'


def main() -> int:
    """Write the picture; returns the exit status."""
    PICTURE.write_text(draw(tuple(sources())), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
