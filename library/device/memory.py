"""How much memory there is."""

import math
from pathlib import Path

from library.device.profile import Device

_GROUPS = Path("/sys/fs/cgroup")
_GROUP_LIMITS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
"""Files with a control group's limit and use, in the two versions of the system."""


def available_memory(device: Device) -> float:
    """Bytes that a run on this device may use; infinite where nobody says.

    Where tensors lie in the host's memory, it is what the machine has free, or what the process's control group leaves
    it if that is less.
    """
    if not device.profile.is_host:
        return math.inf
    limits = [math.inf]
    try:
        meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        limits.append(int(meminfo["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        pass
    for limit, used in _GROUP_LIMITS:
        try:
            limits.append(int((_GROUPS / limit).read_text()) - int((_GROUPS / used).read_text()))
        except (OSError, ValueError):
            continue
    return min(limits)
