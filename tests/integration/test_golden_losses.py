"""Short runs of the real thing, from flags to losses, against what they were when it was last known to be right."""

from collections.abc import Callable

import pytest

from tests.record_golden_losses import NORM_TOLERANCE, RUNS, TOLERANCE, Numbers, compute, recorded

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("device")]


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Numbers]:
    """The numbers of a run, computed when first asked for."""
    known: dict[str, Numbers] = {}

    def numbers(name: str) -> Numbers:
        if name not in known:
            known[name] = compute(name, tmp_path_factory.mktemp("golden"))
        return known[name]

    return numbers


@pytest.mark.parametrize("name", RUNS)
def test_what_was_asked_for_and_drawn_is_what_was_recorded(name: str, once: Callable[[str], Numbers]) -> None:
    found, expected = once(name), recorded(name)
    assert found["flags"] == expected["flags"]
    assert found["captions"] == expected["captions"]
    assert [list(step) for step in found["learning_rates"]] == [list(step) for step in expected["learning_rates"]]
    for mine, theirs in zip(found["learning_rates"], expected["learning_rates"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("name", RUNS)
def test_losses_and_gradient_norms_are_those_recorded(name: str, once: Callable[[str], Numbers]) -> None:
    """Tolerance: see ``TOLERANCE``; a norm is of all gradients of a step, and is moved as much as the losses are."""
    found, expected = once(name), recorded(name)
    assert found["losses"] == pytest.approx(expected["losses"], rel=TOLERANCE)
    assert found["grad_norms"] == pytest.approx(expected["grad_norms"], rel=NORM_TOLERANCE)
