"""How much memory there is."""

import math
from pathlib import Path

import pytest

from library.device import memory
from library.device.memory import available_memory
from library.device.profile import ASCEND, CPU, Device


def test_of_another_device_nobody_knows() -> None:
    assert available_memory(Device(ASCEND)) == math.inf


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="needs Linux")
def test_a_host_says_what_it_has_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    total = int(next(line for line in lines if line.startswith("MemTotal:")).split()[1]) * 1024
    assert 0 < available_memory(Device(CPU)) < total


def test_a_control_group_can_leave_less(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("3000000\n", encoding="ascii")
    (tmp_path / "memory.current").write_text("1000000\n", encoding="ascii")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    assert available_memory(Device(CPU)) == 2_000_000


def test_a_control_group_without_a_limit_says_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    (tmp_path / "memory.max").write_text("max\n", encoding="ascii")
    assert available_memory(Device(CPU)) > 2_000_000
