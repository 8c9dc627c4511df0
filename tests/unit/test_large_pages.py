"""Starting again with large pages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from library.device import large_pages

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = """
import os, sys
sys.path.insert(0, {repository!r})
from library.device.large_pages import restart_with_large_pages
print("begin", os.getpid(), os.environ.get("GLIBC_TUNABLES"), *sys.argv[1:])
restart_with_large_pages()
print("work")
"""


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("", "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.arena_max=1", "glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", None),
        ("glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1", None),
    ],
)
def test_settings_that_are_made_already_stand(settings: str, expected: str | None) -> None:
    assert large_pages.with_large_pages(settings) == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("enabled", "[always] madvise never"),
        ("enabled", "always madvise [never]"),
        ("enabled", None),
        ("hpage_pmd_size", f"{512 << 20}\n"),
    ],
)
@pytest.mark.usefixtures("no_restart")
def test_nothing_is_started_again_where_it_would_not_help(
    name: str, text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_system(tmp_path, monkeypatch)
    if text is None:
        tmp_path.joinpath(name).unlink()
    else:
        tmp_path.joinpath(name).write_text(text)
    large_pages.restart_with_large_pages()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="large pages are asked for on Linux only")
def test_a_program_that_cannot_be_started_again_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_system(tmp_path, monkeypatch)
    asked = []

    def refuse(path: str, arguments: list[str], environment: dict[str, str]) -> None:
        asked.append((path, arguments, environment["GLIBC_TUNABLES"]))
        raise PermissionError(path)

    monkeypatch.setattr(os, "execve", refuse)
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.36")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "train.py", "--lowram"])
    large_pages.restart_with_large_pages()
    again = [sys.executable, "-X", "dev", "train.py", "--lowram"]
    assert asked == [(sys.executable, again, "glibc.malloc.hugetlb=1")]


@pytest.mark.skipif(not large_pages._are_on_request(), reason="this system gives no large pages on request")
def test_a_program_begins_twice_and_works_once(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(repository=str(REPOSITORY)))
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    command = [sys.executable, str(program), "two words", "--flag"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    first, second, last = done.stdout.splitlines()
    _, process, settings, *arguments = first.split(" ", 3)
    assert settings == "None"
    assert second == f"begin {process} glibc.malloc.hugetlb=1 {' '.join(arguments)}"
    assert last == "work"


@pytest.fixture
def no_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        pytest.fail(f"started again with {arguments}")

    monkeypatch.setattr(os, "execve", refuse)


def write_system(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that gives large pages on request, and a process that has asked for nothing yet."""
    folder.joinpath("enabled").write_text("always [madvise] never\n")
    folder.joinpath("hpage_pmd_size").write_text(f"{2 << 20}\n")
    monkeypatch.setattr(large_pages, "_SYSTEM", folder)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
