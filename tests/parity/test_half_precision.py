"""Blocks in half precision, as Ascend runs them: each operation gets one type, and in float16 a CPU gives the numbers.

MindSpore's CPU takes float16 in all kernels that blocks are made of (most compute in float32 inside), bfloat16 in
few.
"""

from dataclasses import replace
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from library.device.profile import ASCEND, Device
from library.graphs import operations as op
from library.graphs.graph_code import GraphFunction
from library.graphs.program import Program
from library.graphs.values import Trace
from library.models import clip_text, unet
from tests.parity.block_kinds import EXAMPLES, block_functions
from tests.parity.traced import PROFILES

pytestmark = pytest.mark.usefixtures("device")

MIXED = ("Cast", "Gather", "UnsortedSegmentSum", "Depend")
"""Operations whose inputs may be of different types."""
HALVES = {"Float16": ms.float16, "BFloat16": ms.bfloat16}
FLOAT = "Float32"
ALLOWED = 1e-2
"""Of the largest value of an output or gradient. A half has 11 bits, so one rounding is up to 5e-4 of a number; a block
rounds some 20 times on the way to its output and again on the way back. Most are off by 1e-3, the worst by 3e-3."""
ZERO = 1.0
"""Gradients are 1 to 13. What is smaller is a sum of such numbers that cancel: that of the keys' biases is 0."""
NOISE = 2e-4
"""That much at least the numbers in float16 must be off, else it was not float16 that computed."""


def test_every_block_function_has_an_example() -> None:
    assert {example.function for example in EXAMPLES.values()} == block_functions(unet) | block_functions(clip_text)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("flash", [False, True])
def test_every_operation_gets_inputs_of_one_type(half: str, flash: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With adapters in float32 beside every layer, and with weights that are trained; forward passes and gradients."""
    record, mixed, kinds = Trace.record, [], set()

    def checked(self: Trace, function: Any, inputs: Any, *others: Any) -> Any:
        name = getattr(function, "name", "function")
        types = {str(x.dtype) for x in inputs}
        kinds.add((name, *types))
        if len(types) > 1 and name not in MIXED:
            mixed.append((name, [(x.shape, str(x.dtype)) for x in inputs]))
        return record(self, function, inputs, *others)

    monkeypatch.setattr(Trace, "record", checked)
    dtype = HALVES[half]
    device = Device(replace(ASCEND, fused_attention=flash), dtype)
    for name, example in EXAMPLES.items():
        out = Program(example.kind(dtype), device).footprint(example.outlines(dtype)).output
        assert out.dtype == (FLOAT if name == "conv_out" else half)
    assert not mixed
    assert ("MatMul", half) in kinds and ("Conv2D", half) in kinds and ("ReduceMean", FLOAT) in kinds
    assert (("BatchMatMul", half) in kinds) and (("Softmax", FLOAT) in kinds) and (("function", half) in kinds) == flash


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("profile", PROFILES)
def test_float16_gives_the_numbers_of_float32(name: str, profile: str) -> None:
    """On this CPU, either device's way: outputs, and gradients of inputs, adapters and weights."""
    half = EXAMPLES[name].results(Device(PROFILES[profile], ms.float16))
    full = EXAMPLES[name].results(Device(PROFILES[profile], ms.float32, compiled=False))
    differences = [np.abs(a - b).max() / max(np.abs(b).max(), ZERO) for a, b in zip(half, full, strict=True)]
    assert max(differences) < ALLOWED
    assert max(differences) > NOISE


@pytest.mark.parametrize("is_sum", [False, True])
def test_what_a_graph_returns_can_be_added_to_halves(is_sum: bool) -> None:
    """MindSpore's CPU graphs return float32 numbers labelled as halves, which an addition refuses."""
    a, b = (np.float32([[1, 2], [3, 4]]), np.float32([[0.5, 1], [1, 0.5]]))
    trace = Trace(PROFILES["CPU"])
    values = [trace.input((2, 2), ms.float16) for _ in range(2)]
    out = op.sum(values[0], 0, keepdims=True) if is_sum else op.matmul(*values)
    result = GraphFunction(trace, values, (out,), True)([Tensor(x, ms.float16) for x in (a, b)])[0]
    expected = a.sum(0, keepdims=True) if is_sum else a @ b
    assert result.dtype == ms.float16
    assert np.array_equal((result + Tensor(expected, ms.float16)).asnumpy(), 2 * expected)
