"""Runs a function of values on tensors, as blocks are run, the way of one device or the other."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from mindspore import Tensor

from library.device.profile import ASCEND, CPU, DeviceProfile
from library.graphs.graph_code import GraphFunction
from library.graphs.values import Trace, Value

Function = Callable[..., Value]
PROFILES = {"CPU": CPU, "Ascend": replace(ASCEND, fused_attention=False)}
"""Both ways in which layers are computed; a CPU can do all of Ascend's but fused attention."""


def value(
    function: Function, inputs: tuple[np.ndarray, ...], compiled: bool = True, profile: DeviceProfile = CPU
) -> np.ndarray:
    """The function's value."""
    tensors = tuple(map(Tensor, inputs))
    trace = Trace(profile)
    values = tuple(trace.input(x.shape, x.dtype) for x in tensors)
    return GraphFunction(trace, values, (function(*values),), compiled)(tensors)[0].asnumpy()  # type: ignore[no-any-return]


def gradients(
    function: Function,
    inputs: tuple[np.ndarray, ...],
    d_output: np.ndarray,
    compiled: bool = True,
    wanted: int | None = None,
    profile: DeviceProfile = CPU,
) -> list[np.ndarray]:
    """Gradient of each input, or of the first ``wanted`` ones."""
    tensors = tuple(map(Tensor, (*inputs, d_output)))
    trace = Trace(profile)
    values = tuple(trace.input(x.shape, x.dtype) for x in tensors)
    found = trace.gradients(function(*values[:-1]), values[-1], values[:-1][:wanted])
    return [d.asnumpy() for d in GraphFunction(trace, values, found, compiled)(tensors)]


def value_and_gradients(
    function: Function, inputs: tuple[np.ndarray, ...], wanted: int | None = None, profile: DeviceProfile = CPU
) -> list[np.ndarray]:
    """The function's value, and its gradients along a fixed direction."""
    out = value(function, inputs, profile=profile)
    return [out, *gradients(function, inputs, np.cos(out), wanted=wanted, profile=profile)]
