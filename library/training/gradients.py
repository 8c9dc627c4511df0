"""The gradients of a step's batches, added up, and their norm."""

import math

import numpy as np
from mindspore import Tensor, ops

from library.device.profile import DeviceProfile
from library.training.trained import TrainedTensor

_CHUNK = 1 << 13
"""Values whose squares NumPy adds up in float32; of more than 10,000 it makes work for other threads."""


class GradientSum:
    """Trained tensor -> sum of its gradients."""

    def __init__(self, profile: DeviceProfile) -> None:
        self._profile = profile
        self._sums: dict[TrainedTensor, Tensor] = {}

    def add(self, trained: TrainedTensor, gradient: Tensor) -> None:
        """Take the gradient of a tensor for one batch; its memory may be used for the sum."""
        others = self._sums.get(trained)
        if others is None:
            self._sums[trained] = gradient
        elif self._profile.is_host:
            total = others.asnumpy()
            np.add(total, gradient.asnumpy(), out=total)
        else:
            self._sums[trained] = others + gradient

    def norm(self) -> float:
        """Root of the sum of all squares, to seven digits."""
        if self._profile.is_host:
            return math.sqrt(math.fsum(_host_squares(gradient.asnumpy()) for gradient in self._sums.values()))
        squares = [ops.square(gradient).sum() for gradient in self._sums.values()]
        return math.sqrt(math.fsum(ops.stack(squares).asnumpy().astype(np.float64).tolist()))

    def take(self) -> dict[TrainedTensor, Tensor]:
        """All sums; nothing is left here."""
        sums, self._sums = self._sums, {}
        return sums


def _host_squares(gradient: np.ndarray) -> float:
    """Sums of chunks in float32, added up in float64."""
    flat = gradient.reshape(-1)
    chunks = (flat[start : start + _CHUNK] for start in range(0, flat.size, _CHUNK))
    return math.fsum(float(np.dot(chunk, chunk)) for chunk in chunks)
