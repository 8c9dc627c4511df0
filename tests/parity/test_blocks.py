"""Every kind of block gives the same numbers in whichever way a device has it computed, and however it is run."""

from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest

from library.device.profile import CPU, Device
from tests.parity.block_kinds import EXAMPLES
from tests.parity.traced import PROFILES

pytestmark = pytest.mark.usefixtures("device")

TOLERANCE = 2e-5
"""Of the largest value, or of 1: the same float32 operations, but sums are taken in another order. Gradients of keys
and queries are differences of numbers that are ten times as large."""


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= TOLERANCE * max(np.abs(b).max(), 1.0)


@pytest.mark.parametrize("name", EXAMPLES)
def test_both_devices_ways_give_the_same(name: str) -> None:
    """Outputs, and gradients of inputs, adapters (with their dropouts) and weights."""
    cpu, ascend = (EXAMPLES[name].results(Device(profile, ms.float32, False)) for profile in PROFILES.values())
    assert_same(ascend, cpu)
    assert all(np.abs(x).max() > 1e-2 for x in cpu if x.size > 8)


@pytest.mark.parametrize("name", EXAMPLES)
def test_computing_again_gives_the_same_as_keeping(name: str) -> None:
    device = Device(CPU, ms.float32, False)
    kept, again = (EXAMPLES[name].results(device, keep=keep) for keep in (True, False))
    assert_same(again, kept)


@pytest.mark.parametrize("name", ["res_block", "transformer_block", "clip_layer"])
def test_compiled_gives_the_same_as_operation_by_operation(name: str) -> None:
    compiled, plain = (EXAMPLES[name].results(Device(CPU, ms.float32, compiled)) for compiled in (True, False))
    assert_same(compiled, plain)


@pytest.mark.parametrize("name", ["res_block", "upsample"])
def test_own_gradients_of_convolutions_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples are too small for them by themselves."""
    monkeypatch.setattr("library.graphs.kernels.MAX_KEPT_COLUMNS", 0)
    ways = (Device(replace(CPU, own_conv_gradient=own), ms.float32, False) for own in (True, False))
    own, mindspores = (EXAMPLES[name].results(device) for device in ways)
    assert_same(own, mindspores)
