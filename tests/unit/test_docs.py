"""What comments and documents cite is in the repository, and the documents can be read by anyone."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("library", "networks", "tools", "tests", "docs", "benchmarks")
CODE = tuple(sorted([*ROOT.glob("*.py"), *(path for f in FOLDERS for path in ROOT.glob(f"{f}/**/*.py"))]))
DOCUMENTS = tuple(sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "tests" / "golden" / "README.md"]))

PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./*-]*[\w*]\.(?:py|md|txt|svg|json|toml)\b")
"""A path from the root of the repository, as prose writes it."""
DECISION = re.compile(r"decisions/(\d{4})\b|\bdecision (\d{4})\b")
LINK = re.compile(r"\]\((?!\w+:)([^)#]+)(?:#[^)]*)?\)")
ELSEWHERE = re.compile(r"\binventory \d|\bDESIGN\b|\.\./shared|GOLDEN_DIR")
"""Documents that are not in the repository."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def missing_in(text: str) -> list[str]:
    """What a text cites that is not there: paths from the root, decisions by number."""
    missing = [path for path in PATH.findall(text) if not [*ROOT.glob(path)]]
    numbers = {first or second for first, second in DECISION.findall(text)}
    return missing + [f"decision {n}" for n in sorted(numbers) if not [*ROOT.glob(f"docs/decisions/{n}-*.md")]]


def broken_links(text: str, folder: Path) -> list[str]:
    """Links of a document in that folder that lead nowhere."""
    return [link for link in LINK.findall(text) if not (folder / link).exists()]


def without_first_column(text: str) -> str:
    """A text without its tables' first column: in docs/kohya_files.md that has kohya's own paths."""
    return re.sub(r"^\| [^|]*\|", "|", text, flags=re.MULTILINE)


@pytest.mark.parametrize("path", [path for path in (*CODE, *DOCUMENTS) if path != Path(__file__)], ids=name_of)
def test_what_is_cited_is_there(path: Path) -> None:
    """But for the laboratory's log, which calls files what they were called then."""
    text = path.read_text(encoding="utf-8")
    cited = without_first_column(text) if path.name == "kohya_files.md" else text
    assert path.parent.name == "log" or missing_in(cited) == []
    assert path.suffix == ".py" or broken_links(text, path.parent) == []
    assert ELSEWHERE.findall(text) == []


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("see docs/nothing.md", ["docs/nothing.md"]),
        ("`library/models/nothing.py`, library/models/unet.py.", ["library/models/nothing.py"]),
        ("(docs/decisions/9999), decision 9998, decisions/0006", ["decision 9998", "decision 9999"]),
        ("tests/golden/steps/*.json", ["tests/golden/steps/*.json"]),
        ("/pictures/docs/mine.md, tools/*.py", []),
    ],
)
def test_a_wrong_citation_is_found(text: str, missing: list[str]) -> None:
    assert missing_in(text) == missing


def test_a_broken_link_is_found() -> None:
    text = "[a](nothing.md), [b](../README.md), [c](https://a.b/c.md), [d](differences.md#floors), [e](caches.md)"
    assert broken_links(text, ROOT / "docs") == ["nothing.md"]


@pytest.mark.parametrize("text", ["(inventory 2.5)", "DESIGN 3.3 says", "../shared/golden", "set GOLDEN_DIR"])
def test_a_document_of_elsewhere_is_found(text: str) -> None:
    assert ELSEWHERE.search(text)


def test_every_document_can_be_found() -> None:
    """From the README, or from what it leads to."""
    found, waiting = set(), [ROOT / "README.md"]
    while waiting:
        path = waiting.pop()
        found.add(path)
        links = [(path.parent / link).resolve() for link in LINK.findall(path.read_text(encoding="utf-8"))]
        waiting += [link for link in links if link.suffix == ".md" and link not in found]
    assert [name_of(path) for path in DOCUMENTS if path not in found and path.parent.name != "decisions"] == []


def test_documents_are_in_plain_characters() -> None:
    assert [name_of(path) for path in DOCUMENTS if not path.read_text(encoding="utf-8").isascii()] == []
