"""Choosing and setting up the device."""

import logging
import os
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import mindspore as ms

from library.device.profile import ASCEND, CPU, PROFILES, Device, DeviceProfile

logger = logging.getLogger(__name__)

_DTYPES = MappingProxyType({"no": ms.float32, "fp16": ms.float16, "bf16": ms.bfloat16})
DEVICES = ("auto", *(profile.name for profile in PROFILES))
_COMPILE_CACHE = "MS_COMPILER_CACHE_ENABLE"
_RUN_IN_CALLER = "MS_DEV_HOST_BLOCKING_RUN"
"""MindSpore's switch that has work done by the thread that asks for it, not by queues of other threads."""


def init_device(requested: str, flash_attn: bool = False, mixed_precision: str = "no", compiled: bool = True) -> Device:
    """Set MindSpore up; call it once, before any tensor is made.

    Args:
        requested: ``auto`` (Ascend where there is one, else CPU), ``CPU`` or ``Ascend``.
        flash_attn: fused attention where the device has it; says so where it has not.
        mixed_precision: ``no``, ``fp16`` or ``bf16``; a device without kernels for the halves computes in float32 and
            says so.
        compiled: compile blocks to graphs.

    Raises:
        ValueError: there is no such device.
    """
    profile = _choose(requested)
    _refuse_compile_cache()
    # On a CPU the caller's thread does everything: MindSpore's queues, and whoever waits for them, spin and take the
    # cores from the kernels. The variable is read at the first operation.
    if profile.is_host:
        os.environ.setdefault(_RUN_IN_CALLER, "1")
    ms.set_context(mode=ms.PYNATIVE_MODE, device_target=profile.name, pynative_synchronize=profile.is_host)
    if flash_attn and not profile.fused_attention:
        logger.info("--flash_attn: there is no fused attention on %s, the plain path is used", profile.name)
    if mixed_precision != "no" and not profile.half_precision:
        logger.info("--mixed_precision %s: a %s computes in float32", mixed_precision, profile.name)
        mixed_precision = "no"
    profile = replace(profile, fused_attention=flash_attn and profile.fused_attention)
    return Device(profile, _DTYPES[mixed_precision], compiled)


def _refuse_compile_cache() -> None:
    """Switch MindSpore's own compile cache off: it finds a graph by the order of compilation alone.

    A second run with another rank or another order of bucket shapes would compute with the wrong graphs, silently.
    """
    if os.environ.pop(_COMPILE_CACHE, "0") not in ("", "0"):
        logger.warning("%s is not used: MindSpore 2.7's cache returns the graphs of another run", _COMPILE_CACHE)


def _choose(requested: str) -> DeviceProfile:
    if requested not in DEVICES:
        raise ValueError(f"--device {requested}: choose one of {', '.join(DEVICES)}")
    if requested == CPU.name:
        return CPU
    served = _serves_ascend()
    if requested == ASCEND.name and not served:
        raise ValueError(
            f"--device {requested}: there is no NPU on this machine (no /dev/davinci0). "
            f"Use --device {CPU.name}, or look at the driver"
        )
    return ASCEND if served else CPU


def _serves_ascend() -> bool:
    """Whether there is an NPU; asked of the system: MindSpore's own question prints errors where there is none."""
    return any(Path("/dev").glob("davinci[0-9]*"))
