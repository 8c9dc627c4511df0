"""Large pages for what the C library allocates, on Linux.

Weights, kept products and MindSpore's own small objects lie all over the memory; in pages of 4 KB the processor spends
an eighth of a training step looking up where (docs/log/performance.md). The C library can ask the system for pages of
2 MB, but only where its settings say so before the program starts. So the program starts itself again with them.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path

_SETTINGS = "GLIBC_TUNABLES"
_LARGE_PAGES = "glibc.malloc.hugetlb"
_FIRST_GLIBC = (2, 35)
"""The first C library that knows the setting."""
_SYSTEM = Path("/sys/kernel/mm/transparent_hugepage")
_ON_REQUEST = "[madvise]"
"""What the system's ``enabled`` says where programs get large pages if they ask for them."""
_LARGEST = 2 << 20
"""Larger ones, as some ARM systems have (512 MB), would take more memory than they are worth."""


def restart_with_large_pages() -> None:
    """Start this program again, with the same arguments and process number, if that gives it large pages.

    To be called first, before anything is done that should not be done twice. Comes back where the setting would change
    nothing: it is made already (whichever way; the user's choice stands), or the system or the C library has no such.
    """
    settings = with_large_pages(os.environ.get(_SETTINGS, ""))
    if settings is not None and _are_on_request():
        sys.stdout.flush()
        sys.stderr.flush()
        with suppress(OSError):  # then without
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, _SETTINGS: settings})


def with_large_pages(settings: str) -> str | None:
    """The C library's settings (``name=value:name=value``) with large pages; None if they speak of them already."""
    if _LARGE_PAGES in settings:
        return None
    return ":".join(filter(None, (settings, _LARGE_PAGES + "=1")))


def _are_on_request() -> bool:
    if not sys.platform.startswith("linux") or not sys.executable:
        return False
    with suppress(OSError, ValueError):
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        numbers = tuple(int(part) for part in version.split(".")[:2])
        small_enough = int(_SYSTEM.joinpath("hpage_pmd_size").read_text()) <= _LARGEST
        asked_for = _ON_REQUEST in _SYSTEM.joinpath("enabled").read_text()
        return name == "glibc" and numbers >= _FIRST_GLIBC and small_enough and asked_for
    return False
