"""Losses: block functions of the prediction and what it is compared with. A new loss is one function in this table."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from library.graphs.block import Layers
from library.graphs.operations import mean
from library.graphs.values import Value


def l2(pred_BCHW: Value, target_BCHW: Value, weights_B1HW: Value, layers: Layers) -> Value:
    """Mean of the weighted squared errors; weights of [B, 1, 1, 1] hold for whole samples."""
    error = pred_BCHW - target_BCHW
    return mean(error * error * weights_B1HW)


LOSSES: Mapping[str, Callable[..., Value]] = MappingProxyType({"l2": l2})
"""By --loss_type."""
