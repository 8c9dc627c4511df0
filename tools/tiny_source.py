"""The tiny SDXL of the recordings, made in memory from its seed instead of read from a file."""

from collections.abc import Iterator

import numpy as np

from library.families.base import BaseWeights
from library.families.sdxl.checkpoint import weights_from_source
from library.families.sdxl.shapes import TINY_SDXL, Shape, checkpoint_shapes
from library.models.random_weights import random_weight


class TinySource:
    """The tensors of a tiny single-file SDXL, drawn by rule when they are read."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._shapes = checkpoint_shapes(TINY_SDXL)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def shape(self, name: str) -> Shape:
        """Shape of one tensor."""
        return self._shapes[name]

    def read(self, name: str, dtype: object = None) -> np.ndarray:
        """One tensor, float32 unless another type is asked for."""
        array = random_weight(self.seed, name, self._shapes[name])
        return array if dtype is None else array.astype(dtype, copy=False)  # type: ignore[call-overload,no-any-return]


def tiny_base(seed: int, te2_projection: str = "correct") -> BaseWeights:
    """The tiny SDXL's weights; ``te2_projection`` as in ``checkpoint.load_weights``."""
    return weights_from_source(TinySource(seed), f"the tiny SDXL of seed {seed}", te2_projection=te2_projection)
