"""Pictures as strips of rows: activations too large to be worked on at once are lists of tensors, from top to bottom.

A 3 x 3 convolution of a strip needs a row of the strip above and one of the strip below. A picture that is small
enough is a single strip and takes the same way. Shapes: B batch, C channels, H W height and width, N = B C.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Tensor

from library.graphs.operations import concat, narrow

Strips = list[Tensor]
"""[B, C, rows, W] each, from top to bottom; all have the same number of rows, but the last may have fewer."""


def rows_per_strip(height: int, row_values: int, limit: int) -> int:
    """Rows of each strip of a picture: an even number, unless one strip is all of it.

    Args:
        height: rows of the picture.
        row_values: values of a row, over all channels and images.
        limit: values that a strip may have; two rows are the least.

    Returns:
        A number that divides the height where there is one, so that all strips are alike and share a program.
    """
    if height * row_values <= limit or height <= 2:
        return height
    most = max(2, limit // row_values // 2 * 2)
    count = -(-height // most)
    alike = (height // n for n in range(count, 2 * count) if height % (2 * n) == 0)
    return next(alike, -(-height // (2 * count)) * 2)


def cut(x_BCHW: np.ndarray, rows: int, dtype: ms.Type) -> Strips:
    """Strips of an array."""
    parts = (np.ascontiguousarray(x_BCHW[:, :, i : i + rows], np.float32) for i in range(0, x_BCHW.shape[2], rows))
    return [Tensor.from_numpy(part).astype(dtype) for part in parts]


def joined(strips: Strips) -> Tensor:
    """The whole picture."""
    return concat(tuple(strips), 2)


def joined_array(strips: Strips) -> np.ndarray:
    """The whole picture in NumPy, float32."""
    return np.concatenate([strip.astype(ms.float32).asnumpy() for strip in strips], axis=2)


def emptied(strips: Strips) -> Iterator[Tensor]:
    """The strips, taken out of the list one by one, so that each is freed when it was used."""
    pending = deque(strips)
    strips.clear()
    while pending:
        yield pending.popleft()


def regroup(strips: Strips, rows: int) -> Strips:
    """Strips of another number of rows; the list that is given is emptied on the way."""
    regrouped: Strips = []
    parts: list[Tensor] = []
    wanted = rows
    for strip in emptied(strips):
        start, height = 0, strip.shape[2]
        while start < height:
            parts.append(narrow(strip, 2, start, min(wanted, height - start)))
            start += parts[-1].shape[2]
            wanted -= parts[-1].shape[2]
            if not wanted:
                regrouped.append(concat(tuple(parts), 2))
                parts, wanted = [], rows
    return regrouped + ([concat(tuple(parts), 2)] if parts else [])


class Neighbourhood(NamedTuple):
    """A strip and the rows [B, C, 1, W] next to it, which are zero beyond the picture."""

    strip: Tensor
    above: Tensor
    below: Tensor


def neighbourhoods(strips: Iterable[Tensor]) -> Iterator[Neighbourhood]:
    """Each strip with its neighbours; looks one strip ahead."""
    pending = iter(strips)
    strip = next(pending)
    batch, channels, _, width = strip.shape
    zeros = Tensor(np.zeros((batch, channels, 1, width), np.float32)).astype(strip.dtype)
    above = zeros
    for following in pending:
        yield Neighbourhood(strip, above, narrow(following, 2, 0, 1))
        above = narrow(strip, 2, strip.shape[2] - 1, 1)
        strip = following
    yield Neighbourhood(strip, above, zeros)


# --- group normalisation ----------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class GroupNorm:
    """A group normalisation whose statistics are those of all strips."""

    weight: np.ndarray
    """[C]."""
    bias: np.ndarray
    groups: int
    eps: float

    def of_channels(self, rows: Sequence[int], moments_G2: Sequence[np.ndarray]) -> Tensor:
        """The factor of each channel of each image and what is added then, float32 [2, N].

        Args:
            rows: of each strip.
            moments_G2: mean, and mean squared distance from it, of each image's groups in each strip [B groups, 2].
        """
        share = np.asarray(rows, np.float64)[:, None] / sum(rows)
        means, variances = np.moveaxis(np.stack(moments_G2).astype(np.float64), 2, 0)
        mean = (share * means).sum(0)
        # The variance of the whole is that within the strips and that of the strips' means.
        variance = (share * (variances + (means - mean) ** 2)).sum(0)
        batch, per_group = mean.size // self.groups, self.weight.size // self.groups
        mean, deviation = (np.repeat(x, per_group) for x in (mean, np.sqrt(variance + self.eps)))
        scale = np.tile(self.weight, batch) / deviation
        return Tensor(np.stack((scale, np.tile(self.bias, batch) - mean * scale)).astype(np.float32))
