"""Choosing and setting up the device: the only file that knows a device's name."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import mindspore as ms

from library.device import cores, graph_code, kernels, mint_cpu, vectors

logger = logging.getLogger(__name__)

_DTYPES = MappingProxyType({"no": ms.float32, "fp16": ms.float16, "bf16": ms.bfloat16})
DEVICES = ("auto", "CPU", "Ascend")
_COMPILE_CACHE = "MS_COMPILER_CACHE_ENABLE"
_RUN_IN_CALLER = "MS_DEV_HOST_BLOCKING_RUN"
"""MindSpore's switch that has work done by the thread that asks for it, not by queues of other threads."""
_UNFOLD_FROM = (2, 8)
"""First MindSpore whose CPU convolution is slow (measured on 2.10; 2.7.1 is fast)."""


@dataclass(frozen=True)
class Device:
    """What a run needs to know about the device."""

    name: str
    """``CPU`` or ``Ascend``."""
    compute_dtype: ms.Type
    """Type of the frozen weights and of what flows between blocks."""

    @property
    def value_bytes(self) -> int:
        """Bytes of a value of that type."""
        return 4 if self.compute_dtype == ms.float32 else 2


def init_device(requested: str, flash_attn: bool = False, mixed_precision: str = "no") -> Device:
    """Set MindSpore up; call it once, before any tensor is made.

    Args:
        requested: ``auto`` (Ascend where there is one, else CPU), ``CPU`` or ``Ascend``.
        flash_attn: fused attention where the device has it; says so where it has not.
        mixed_precision: ``no``, ``fp16`` or ``bf16``; a CPU has no kernels for the halves, computes in float32 and
            says so.

    Raises:
        ValueError: there is no such device.
    """
    name = _choose(requested)
    _refuse_compile_cache()
    # On a CPU the caller's thread does everything: MindSpore's queues, and whoever waits for them, spin and take the
    # cores from the kernels. The variable is read at the first operation.
    if name == "CPU":
        os.environ.setdefault(_RUN_IN_CALLER, "1")
    ms.set_context(mode=ms.PYNATIVE_MODE, device_target=name, pynative_synchronize=name == "CPU")
    version = tuple(int(part) for part in ms.__version__.split(".")[:2])
    kernels.UNFOLD_CONV = name == "CPU" and version >= _UNFOLD_FROM
    kernels.EXPLICIT_BROADCAST = name == "CPU"
    kernels.GATHER_HEADS = name == "CPU"
    kernels.OWN_CONV_GRADIENT = name == "CPU"
    kernels.MAX_SCORES = 1 << (22 if name == "CPU" else 24)
    kernels.FEW_ROWS = 96 if name == "CPU" else 0
    graph_code.RELEASE_AT_ONCE = name == "CPU"
    cores.SETTLE = name == "CPU"
    vectors.ON_HOST = name == "CPU"
    kernels.FLASH_ATTENTION = flash_attn and name == "Ascend"
    if name == "CPU":
        mint_cpu.install()
    if flash_attn and name != "Ascend":
        logger.info("--flash_attn: there is no fused attention on %s, the plain path is used", name)
    if mixed_precision != "no" and name == "CPU":
        logger.info("--mixed_precision %s: a CPU computes in float32", mixed_precision)
        mixed_precision = "no"
    return Device(name, _DTYPES[mixed_precision])


def _refuse_compile_cache() -> None:
    """Switch MindSpore's own compile cache off: it finds a graph by the order of compilation alone.

    A second run with another rank or another order of bucket shapes would compute with the wrong graphs, silently.
    """
    if os.environ.pop(_COMPILE_CACHE, "0") not in ("", "0"):
        logger.warning("%s is not used: MindSpore 2.7's cache returns the graphs of another run", _COMPILE_CACHE)


def _choose(requested: str) -> str:
    if requested not in DEVICES:
        raise ValueError(f"--device {requested}: choose one of {', '.join(DEVICES)}")
    if requested == "CPU":
        return "CPU"
    served = _serves_ascend()
    if requested == "Ascend" and not served:
        raise ValueError(
            "--device Ascend: there is no NPU on this machine (no /dev/davinci0). "
            "Use --device CPU, or look at the driver"
        )
    return "Ascend" if served else "CPU"


def _serves_ascend() -> bool:
    """Whether there is an NPU; asked of the system: MindSpore's own question prints errors where there is none."""
    return any(Path("/dev").glob("davinci[0-9]*"))
