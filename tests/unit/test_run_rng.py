"""Random streams depend on seed, purpose and keys, on nothing else, and stay what they are."""

import numpy as np
import pytest

from library.data.run_rng import RunRng


def test_streams_are_pinned():
    """These numbers are part of the format of a run: a change makes every seeded run another one."""
    rng = RunRng(42)
    assert rng.key("noise", 3, "a.png") == 12421013099808381579
    assert rng.python("caption", 1, 0, 7).random() == 0.355909361997343
    assert rng.numpy("order", 1).permutation(6).tolist() == [5, 1, 2, 0, 3, 4]


def test_same_name_same_stream_whatever_was_drawn_before():
    first, second = RunRng(7), RunRng(7)
    first.numpy("noise", 1).standard_normal(100)
    first.python("flip", 2).random()
    expected = second.numpy("noise", 2).standard_normal(5)
    np.testing.assert_array_equal(first.numpy("noise", 2).standard_normal(5), expected)


@pytest.mark.parametrize(
    "other",
    [
        lambda: RunRng(8).key("noise", 1, 2),
        lambda: RunRng(7).key("noises", 1, 2),
        lambda: RunRng(7).key("noise", 2, 1),
        lambda: RunRng(7).key("noise", 12),
        lambda: RunRng(7).key("noise", 1, "2"),
        lambda: RunRng(7).key("noise,1", 2),
    ],
)
def test_another_name_is_another_stream(other):
    assert other() != RunRng(7).key("noise", 1, 2)


def test_numpy_integers_count_as_whole_numbers_and_fractions_do_not():
    assert RunRng(7).key("noise", np.int64(3)) == RunRng(7).key("noise", 3)
    with pytest.raises(TypeError):
        RunRng(7).key("noise", 1.5)
