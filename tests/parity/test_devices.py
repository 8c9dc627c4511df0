"""A training run on the rows that a CPU does not choose by itself: Ascend's way of doing things, and half precision."""

from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest

from library.device.profile import ASCEND, CPU, Device
from tests.parity.made_up_run import flat, outcome_of, relative_error
from tools.replay_recording import Outcome

pytestmark = [pytest.mark.usefixtures("device"), pytest.mark.slow]

ASCENDS_WAY = Device(replace(ASCEND, fused_attention=False))
"""All of Ascend's row but fused attention, for which a CPU has no kernel."""


@pytest.mark.parametrize(
    "more_argv",
    ["--max_grad_norm 0.01 --gradient_accumulation_steps 2", "--optimizer_type Adafactor --network_args conv_dim=2"],
    ids=["AdamW, clipped, accumulated", "Adafactor, convolutions"],
)
def test_ascends_way_gives_the_cpus_numbers(more_argv: str) -> None:
    """Float32 operations in another order: sums of a norm, a convolution's gradient, heads transposed."""
    expected, found = outcome_of(Device(CPU), more_argv), outcome_of(ASCENDS_WAY, more_argv)
    np.testing.assert_allclose(found.losses_S, expected.losses_S, rtol=1e-5)
    np.testing.assert_allclose(found.norms_S, expected.norms_S, rtol=1e-3)
    assert relative_error(flat(found.gradients), flat(expected.gradients)) < 1e-4
    # AdamW's first steps go by the sign of a gradient and Adafactor divides by its size; so where the gradient is zero
    # but for rounding (time embeddings before a norm of single channels) the change is noise.
    changes = ((found.after[key] - before, expected.after[key] - before) for key, before in moved(expected))
    errors = [relative_error(*pair) for pair in changes]
    assert np.median(errors) < 1e-4


def moved(outcome: Outcome) -> list[tuple[str, np.ndarray]]:
    """Name and first value of each tensor that was trained."""
    return [(key, before) for key, before in outcome.before.items() if (outcome.after[key] != before).any()]


def test_float16_from_the_batch_to_the_update() -> None:
    """Weights and what flows between blocks have 11 bits: the loss is good to some 1e-3, and it goes down alike."""
    argv = "--optimizer_type AdamW"
    expected, found = outcome_of(Device(CPU), argv), outcome_of(Device(CPU, ms.float16), argv)
    np.testing.assert_allclose(found.losses_S, expected.losses_S, rtol=5e-3)
    assert relative_error(flat(found.gradients), flat(expected.gradients)) < 0.05
    assert all(tensor.dtype == np.float32 for tensor in found.after.values()), "adapters are trained in float32"
    assert all(np.isfinite(tensor).all() for tensor in found.after.values())
