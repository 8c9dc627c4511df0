"""The benchmarks count operations right."""

import math

import pytest

from benchmarks.flops import unet_step_flops
from library.families.sdxl.shapes import FULL_SDXL, TINY_SDXL, unet_shapes


def test_the_full_unet_has_the_real_ones_parameters() -> None:
    assert sum(math.prod(shape) for _, shape in unet_shapes(FULL_SDXL)) == 2_567_463_684


def test_a_forward_pass_at_1024_pixels_takes_the_known_count() -> None:
    """6.76 TFLOP is what profilers of the original report for one 1024 x 1024 picture."""
    assert unet_step_flops(FULL_SDXL, 1, 128, 128, 16).forward == pytest.approx(6.76e12, rel=1e-3)


def test_a_batch_counts_as_often_as_it_has_pictures() -> None:
    one, two = (unet_step_flops(TINY_SDXL, batch, 16, 16, 4) for batch in (1, 2))
    assert two.useful == 2 * one.useful
    assert one.useful == one.forward + one.backward + one.adapters
