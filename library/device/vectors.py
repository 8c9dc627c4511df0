"""Long vectors: their length, changing it, and their parts."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from mindspore import Tensor, ops

from library.graphs.values import Shape

ON_HOST = False
"""Compute with NumPy on the tensor's own memory; set for a CPU, where MindSpore takes up to ten times as long."""
_HOST_CHUNK = 1 << 13
"""Values whose squares NumPy adds up in float32; of more than 10,000 it makes work for other threads."""
_DEVICE_CHUNK = 1 << 22


def sum_of_squares(vector: Tensor) -> float:
    """Squared length of a float32 vector [N], to seven digits: sums of chunks are added up in float64."""
    if ON_HOST:
        array = vector.asnumpy()
        chunks = (array[start : start + _HOST_CHUNK] for start in range(0, array.size, _HOST_CHUNK))
        return math.fsum(float(np.dot(chunk, chunk)) for chunk in chunks)
    return math.fsum(float((chunk * chunk).sum().asnumpy()) for chunk in ops.split(vector, _DEVICE_CHUNK))


def scaled(vector: Tensor, factor: float) -> Tensor:
    """A float32 vector times a number; may change the vector itself, which saves a second one of its size."""
    if not ON_HOST:
        return vector * factor
    array = vector.asnumpy()
    np.multiply(array, np.float32(factor), out=array)
    return vector if vector.data_ptr() == array.ctypes.data else Tensor(array)


def parts_of(vector: Tensor, shapes: Sequence[Shape]) -> tuple[Tensor, ...]:
    """Consecutive parts of a vector [N], in shapes that take up N values together. On a CPU they share its memory.

    MindSpore's own views are copied each time that a graph or a kernel is given one.
    """
    sizes = [math.prod(shape) for shape in shapes]
    array = vector.asnumpy() if ON_HOST else None
    if array is None or vector.data_ptr() != array.ctypes.data:
        return tuple(part.reshape(shape) for part, shape in zip(ops.split(vector, sizes), shapes, strict=True))
    ends = itertools.accumulate(sizes)
    parts = (array[end - size : end] for size, end in zip(sizes, ends, strict=True))
    return tuple(Tensor.from_numpy(part.reshape(shape)) for part, shape in zip(parts, shapes, strict=True))
