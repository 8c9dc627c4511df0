"""What a compiled graph keeps in memory on a CPU: nothing that grows with its tensors.

Some of MindSpore's CPU kernels keep tables or a working memory of their own for as long as the process lives. Every
bucket shape brings some hundred new kernels, so a run with many shapes would fill the memory with them.
"""

from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from library.device.profile import CPU, Device
from library.graphs import kernels
from library.graphs.graph_code import GraphFunction, release
from library.graphs.program import Program
from library.graphs.random import key_tensor
from library.graphs.values import Trace, Value
from tests.parity.block_kinds import EXAMPLES
from tests.parity.traced import PROFILES, Function

pytestmark = pytest.mark.usefixtures("device")

GRAPHS = 4
ALLOWED = 5e6
"""Bytes for each graph beyond the first; about 2 MB are its own description. Kept tables take 19 and 38 MB here."""


def attention(q: Value, k: Value, v: Value) -> Value:
    return kernels.attention(q, k, v, 1, 64)


def convolution(x: Value, weight: Value) -> Value:
    return kernels.conv2d(x, weight, None, 1, 1)


CASES = {
    "attention": (attention, [(1024, 640)] * 3, 3),
    "convolution": (convolution, [(1, 128, 64, 64), (16, 128, 3, 3)], 1),
}


@pytest.mark.parametrize("name", CASES)
def test_a_gradients_graph_keeps_no_memory(name: str) -> None:
    function, shapes, wanted = CASES[name]
    inputs = [Tensor(np.ones(shape, np.float32)) for shape in (*shapes, result_shape(function, shapes))]
    graphs = []  # they stay alive, as those of a run do
    used = []
    for _ in range(GRAPHS):
        graphs.append(gradient_graph(function, shapes, wanted))
        for _ in range(2):
            graphs[-1](inputs)  # the same inputs: a graph holds on to those of its last call
        used.append(memory_in_use())
    assert (used[-1] - used[0]) / (GRAPHS - 1) < ALLOWED


def gradient_graph(function: Function, shapes: list[tuple[int, ...]], wanted: int) -> GraphFunction:
    trace = Trace(CPU)
    inputs = [trace.input(shape, ms.float32) for shape in shapes]
    out = function(*inputs)
    d_out = trace.input(out.shape, ms.float32)
    return GraphFunction(trace, [*inputs, d_out], trace.gradients(out, d_out, inputs[:wanted]), True)


def result_shape(function: Function, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    trace = Trace(CPU)
    return function(*[trace.input(shape, ms.float32) for shape in shapes]).shape


def memory_in_use() -> int:
    """Bytes of anonymous memory that the process holds."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("Anonymous:")).split()[1])


@pytest.mark.parametrize("profile", PROFILES)
def test_kept_products_are_given_back_and_nothing_else_is(profile: str) -> None:
    """Where tensors lie in the host's memory; the same call gives the same gradients afterwards."""
    example, device = EXAMPLES["transformer_block"], Device(PROFILES[profile])
    program = Program(replace(example.kind(ms.float32), adapters=(), trained=()), device)
    inputs, weights = example.tensors(ms.float32)
    others = [key_tensor(0), *weights]
    results = []
    for _ in range(2):
        out, saved = program.forward_and_save(inputs, others, (0, 1), keep=True)
        results.append([x.asnumpy().copy() for x in program.gradients(saved, others, out)])
        release(saved.own, device.profile)
        assert saved.own
        assert {tensor.untyped_storage().size() == 0 for tensor in saved.own} == {device.profile.is_host}
        assert all(tensor.untyped_storage().size() for tensor in (out, *inputs, *others))
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)
