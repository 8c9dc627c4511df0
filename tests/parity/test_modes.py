"""A step gives the same compiled and not, and it learns."""

import json
from collections.abc import Iterable

import numpy as np
import pytest
from mindspore import Tensor

from library.device.profile import CPU, Device, DeviceProfile
from library.graphs.graph_code import release
from library.training import block_tape
from tests.parity.made_up_run import (
    ARGV,
    SINGLE_OPERATIONS,
    STEPS,
    first_inputs,
    flat,
    outcome_of,
    ready,
    relative_error,
)

TOLERANCE = 1e-5
"""Relative: the same float32 operations, but sums may be taken in another order."""

pytestmark = [pytest.mark.usefixtures("device"), pytest.mark.slow]


def test_compiled_blocks_give_the_losses_of_single_operations() -> None:
    compiled, plain = outcome_of(Device(CPU)), outcome_of(SINGLE_OPERATIONS)
    np.testing.assert_allclose(compiled.losses_S, plain.losses_S, rtol=TOLERANCE)
    assert relative_error(flat(compiled.gradients), flat(plain.gradients)) < TOLERANCE
    assert len(set(plain.losses_S)) == STEPS


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_recomputing_blocks_gives_the_same_gradients_as_keeping_their_products(share: float) -> None:
    kept = outcome_of(Device(CPU))
    again = outcome_of(Device(CPU), f"--gradient_checkpointing --gradient_checkpointing_keep={share}")
    np.testing.assert_allclose(again.losses_S, kept.losses_S, rtol=TOLERANCE)
    assert relative_error(flat(again.gradients), flat(kept.gradients)) < TOLERANCE


def test_the_loss_of_a_fixed_batch_falls_by_half() -> None:
    """Stops as soon as it has; 200 steps are allowed."""
    replay = ready(Device(CPU), ARGV.replace("1e-3", "5e-3"), steps=1)
    inputs, losses = first_inputs(replay), []
    for _ in range(200):
        losses.append(replay.training.step(inputs, 1.0).loss)
        if losses[-1] < losses[0] / 2:
            break
    assert losses[-1] < losses[0] / 2, json.dumps(losses)


def test_kept_products_that_are_given_back_are_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    replay = ready(SINGLE_OPERATIONS, steps=1)
    inputs, released = first_inputs(replay), []

    def recorded(tensors: Iterable[Tensor], profile: DeviceProfile) -> None:
        released.extend(tensors)
        if gives_back:
            release(released, profile)

    monkeypatch.setattr(block_tape, "release", recorded)
    found = []
    for gives_back in (True, False):
        loss, pred, gradients = replay.training.step.gradients(inputs)
        found.append({"loss": np.float32(loss), "pred": pred.copy(), **gradients})
        assert {tensor.untyped_storage().size() == 0 for tensor in released} == {gives_back}
        released.clear()
    assert found[0].keys() == found[1].keys()
    for key, array in found[0].items():
        np.testing.assert_array_equal(array, found[1][key])
