"""Each function that the CPU is given against NumPy, and whether MindSpore still needs it."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, mint, ops

from tools import mindone_on_cpu

ROUNDING = 1e-5
"""Relative to the largest value: float32 sums of some hundred terms."""

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 6, 9, 7)).astype(np.float32)
TABLE = RNG.standard_normal((5, 12)).astype(np.float32)
WEIGHT = RNG.standard_normal((4, 6, 3, 3)).astype(np.float32)
BIAS = RNG.standard_normal(4).astype(np.float32)

CALLS: dict[str, Callable[[], Tensor]] = {
    "mint.nn.layer.conv.conv2d_ext_op": lambda: mint.nn.layer.conv.conv2d_ext_op(
        Tensor(X), Tensor(WEIGHT), None, 1, 1, 1, 1
    ),
    "ops.layer_norm": lambda: ops.layer_norm(Tensor(TABLE), (12,)),
    "mint.nn.functional.gelu": lambda: mint.nn.functional.gelu(Tensor(TABLE)),
    "mint.nn.functional.pad": lambda: mint.nn.functional.pad(Tensor(X), (0, 1, 0, 1), mode="constant", value=0),
    "mint.arange": lambda: mint.arange(0, 5, dtype=ms.float32),
    "mint.zeros_like": lambda: mint.zeros_like(Tensor(TABLE)),
    "mint.stack": lambda: mint.stack([Tensor(TABLE), Tensor(TABLE)], dim=1),
}
"""A call of each name of the table, through the name."""


def originals_that_work() -> list[str]:
    """Names whose own function runs on a CPU and so needs no replacement; nothing may be installed yet."""
    ms.set_context(device_target="CPU")
    working = []
    for name, call in CALLS.items():
        try:
            call().asnumpy()
        except RuntimeError:
            continue
        working.append(name)
    return working


def close(value: Tensor, expected: np.ndarray) -> bool:
    assert value.shape == expected.shape
    assert value.asnumpy().dtype == expected.dtype
    return bool(np.abs(value.asnumpy() - expected).max() <= ROUNDING * np.abs(expected).max())


def numpy_conv2d(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: tuple[int, int], padding: tuple[int, int]
) -> np.ndarray:
    padded = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(2, 3))
    windows = windows[:, :, :: stride[0], :: stride[1]]
    y = np.einsum("bchwij,ocij->bohw", windows.astype(np.float64), weight.astype(np.float64), optimize=True)
    return (y + bias.reshape(1, -1, 1, 1)).astype(np.float32)


@pytest.fixture(autouse=True)
def installed(device: None) -> None:
    mindone_on_cpu.install()


def test_every_name_is_called_here() -> None:
    assert set(CALLS) == set(mindone_on_cpu.REPLACEMENTS)


def test_install_binds_every_name_and_only_once() -> None:
    mindone_on_cpu.install()
    for path, replacement in mindone_on_cpu.REPLACEMENTS.items():
        target: object = ms
        for part in path.split("."):
            target = getattr(target, part)
        assert target is replacement, path
        assert CALLS[path]().asnumpy().size, path


def test_every_replacement_is_still_needed() -> None:
    code = "import test_mindone_on_cpu; print(test_mindone_on_cpu.originals_that_work())"
    here = Path(__file__).resolve()
    path = f"import sys; sys.path[:0] = [{str(here.parent)!r}, {str(here.parents[2])!r}]; "
    result = subprocess.run([sys.executable, "-c", path + code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [((3, 3), 1, 1), ((3, 3), 2, 0), ((1, 1), 1, 0), ((3, 3), (2, 2), (1, 1)), ((3, 1), (1, 2), (1, 0))],
)
def test_conv2d(kernel: tuple[int, int], stride: int | tuple[int, int], padding: int | tuple[int, int]) -> None:
    weight = np.ascontiguousarray(WEIGHT[:, :, : kernel[0], : kernel[1]])
    y = mindone_on_cpu.conv2d(Tensor(X), Tensor(weight), Tensor(BIAS), stride, padding)
    pairs = [value if isinstance(value, tuple) else (value, value) for value in (stride, padding)]
    assert close(y, numpy_conv2d(X, weight, BIAS, *pairs))


def test_conv2d_of_groups_and_without_bias() -> None:
    depthwise = np.ascontiguousarray(WEIGHT[:2, :3])
    y = mindone_on_cpu.conv2d(Tensor(X), Tensor(depthwise), None, 1, 1, 1, 2)
    halves = [
        numpy_conv2d(X[:, 3 * i : 3 * i + 3], depthwise[i : i + 1], np.zeros(1), (1, 1), (1, 1)) for i in range(2)
    ]
    assert close(y, np.concatenate(halves, 1))


def test_a_mint_layer_convolves_on_the_cpu() -> None:
    layer = mint.nn.Conv2d(6, 4, 3, stride=2, padding=1)
    expected = numpy_conv2d(X, layer.weight.asnumpy(), layer.bias.asnumpy(), (2, 2), (1, 1))
    assert close(layer(Tensor(X)), expected)


@pytest.mark.parametrize("axes", [1, 2])
def test_layer_norm(axes: int) -> None:
    shape = X.shape[-axes:]
    weight, bias = (RNG.standard_normal(shape).astype(np.float32) for _ in range(2))
    over = tuple(range(4 - axes, 4))
    normed = (X - X.mean(over, keepdims=True)) / np.sqrt(X.var(over, keepdims=True) + 1e-5)
    assert close(mindone_on_cpu.layer_norm(Tensor(X), shape, Tensor(weight), Tensor(bias)), normed * weight + bias)
    assert close(mindone_on_cpu.layer_norm(Tensor(X), shape), normed)


def test_gelu() -> None:
    erf = np.vectorize(math.erf)(TABLE / math.sqrt(2))
    tanh = np.tanh(math.sqrt(2 / math.pi) * (TABLE + 0.044715 * TABLE**3))
    assert close(mindone_on_cpu.gelu(Tensor(TABLE)), (0.5 * TABLE * (1 + erf)).astype(np.float32))
    assert close(mindone_on_cpu.gelu(Tensor(TABLE), approximate="tanh"), 0.5 * TABLE * (1 + tanh))


@pytest.mark.parametrize("edges", [(0, 1, 0, 1), (1, 1, 2, 0), (2, 0, 0, 0), (1, 2)])
@pytest.mark.parametrize("value", [None, 0, 3.0])
def test_pad(edges: tuple[int, ...], value: float | None) -> None:
    widths = [(0, 0)] * 4
    for axis in range(len(edges) // 2):
        widths[3 - axis] = (edges[2 * axis], edges[2 * axis + 1])
    expected = np.pad(X, widths, constant_values=value or 0)
    assert np.array_equal(mindone_on_cpu.pad(Tensor(X), edges, "constant", value).asnumpy(), expected)


def test_arange() -> None:
    for arguments in ((5,), (2, 5), (1, 8, 3), (5, 0, -2)):
        assert mindone_on_cpu.arange(*arguments).asnumpy().tolist() == list(range(*arguments))
    halves = mindone_on_cpu.arange(0, 2, 0.5, dtype=ms.float32).asnumpy()
    assert halves.dtype == np.float32
    assert halves.tolist() == [0.0, 0.5, 1.0, 1.5]


def test_zeros_like_and_stack() -> None:
    zeros = mindone_on_cpu.zeros_like(Tensor(TABLE), dtype=ms.int32).asnumpy()
    assert (zeros.dtype, zeros.shape, zeros.any()) == (np.int32, TABLE.shape, False)
    for axis in (0, 1, -1):
        stacked = mindone_on_cpu.stack([Tensor(TABLE), Tensor(2 * TABLE)], dim=axis).asnumpy()
        assert np.array_equal(stacked, np.stack([TABLE, 2 * TABLE], axis))
