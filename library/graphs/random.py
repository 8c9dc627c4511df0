"""Random numbers as a function of a key, computable inside a compiled graph on every device.

MindSpore's own generators keep a hidden state, which would make a dropout mask depend on what ran before and differ
between a block's forward pass and its recomputation. Here a mask depends on its key and position alone.

The mixing function is the 32-bit finaliser of C. Wellons' hash prospector (constants 0x7feb352d, 0x846ca68b).
"""

import numpy as np
from mindspore import Tensor
from mindspore import dtype as mstype

from library.graphs.operations import arange, at_least, bit_and, bit_xor, int32_scalar, shift_right
from library.graphs.values import Value

_MIX1 = 0x7FEB352D
_MIX2 = 0x846CA68B - (1 << 32)  # as a signed 32-bit number
_GOLDEN = 0x9E3779B9 - (1 << 32)  # 2**32 / golden ratio, spreads consecutive counters
_LOW_24_BITS = 0xFFFFFF


def _mix(x: Value) -> Value:
    x = bit_xor(x, bit_and(shift_right(x, 16), 0xFFFF)) * int32_scalar(_MIX1)
    x = bit_xor(x, bit_and(shift_right(x, 15), 0x1FFFF)) * int32_scalar(_MIX2)
    return bit_xor(x, bit_and(shift_right(x, 16), 0xFFFF))


def uniform(rows: int, columns: int, key: Value, salt: int) -> Value:
    """Float32 numbers in [0, 1), shape [rows, columns].

    Args:
        rows: first size.
        columns: second size.
        key: int32 scalar; another key gives independent numbers.
        salt: a constant below 2**31 that tells apart several draws with one key.
    """
    start = _mix(key + int32_scalar(salt))
    # The counters are added to the key before they are multiplied: a product of constants is folded by MindSpore 2.7's
    # graph compiler in float32, which loses its low bits.
    row = _mix((start + arange(rows)) * int32_scalar(_GOLDEN))
    column = (start + arange(columns)) * int32_scalar(_MIX1)
    bits = _mix(row.reshape(rows, 1) + column.reshape(1, columns))
    return bit_and(bits, _LOW_24_BITS).astype(mstype.float32) * (1.0 / (1 << 24))


def keep_mask(rows: int, columns: int, drop_rate: float, key: Value, salt: int) -> Value:
    """1 / (1 - drop_rate) where a value is kept, else 0: float32 [rows, columns]."""
    return at_least(uniform(rows, columns, key, salt), drop_rate) * (1.0 / (1.0 - drop_rate))


def key_tensor(value: int) -> Tensor:
    """A key from any integer, folded to the int32 scalar that ``uniform`` takes."""
    return Tensor(np.array(value & 0xFFFFFFFF, np.uint32).view(np.int32))
