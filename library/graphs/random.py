"""Random numbers as a function of a key, computable inside a compiled graph on every device.

MindSpore's own generators keep a hidden state, which would make a dropout mask depend on what ran before and differ
between a block's forward pass and its recomputation. Here a mask depends on its key and position alone.

The mixing function is the 32-bit finaliser of C. Wellons' hash prospector (constants 0x7feb352d, 0x846ca68b).
"""

import functools

import numpy as np
from mindspore import Tensor, ops
from mindspore import dtype as mstype

from library.graphs.operations import at_least
from library.graphs.values import Constant, Value, apply

_MIX1 = 0x7FEB352D
_MIX2 = 0x846CA68B - (1 << 32)  # as a signed 32-bit number
_GOLDEN = 0x9E3779B9 - (1 << 32)  # 2**32 / golden ratio, spreads consecutive counters
_LOW_24_BITS = 0xFFFFFF


# --- integers, which have no gradients --------------------------------------------------------------------------------
_AND, _XOR, _SHIFT = ops.BitwiseAnd(), ops.BitwiseXor(), ops.RightShift()


@functools.cache
def _int32_scalar(number: int) -> Constant:
    """A constant of shape ()."""
    return Constant(np.array(number, np.int32))


@functools.cache
def _arange(count: int) -> Constant:
    """The constant 0, 1, ..., count - 1 in int32."""
    return Constant(np.arange(count, dtype=np.int32))


def _bit_and(x: Value, number: int) -> Value:
    """Bits that both have."""
    return apply(_AND, (x, _int32_scalar(number)), shape=x.shape)


def _bit_xor(x: Value, y: Value) -> Value:
    """Bits that one of two values of the same shape has."""
    return apply(_XOR, (x, y), shape=x.shape)


def _shift_right(x: Value, bits: int) -> Value:
    """Divided by a power of two; negative numbers stay negative."""
    return apply(_SHIFT, (x, _int32_scalar(bits)), shape=x.shape)


# --- numbers ----------------------------------------------------------------------------------------------------------
def _mix(x: Value) -> Value:
    x = _bit_xor(x, _bit_and(_shift_right(x, 16), 0xFFFF)) * _int32_scalar(_MIX1)
    x = _bit_xor(x, _bit_and(_shift_right(x, 15), 0x1FFFF)) * _int32_scalar(_MIX2)
    return _bit_xor(x, _bit_and(_shift_right(x, 16), 0xFFFF))


def uniform(rows: int, columns: int, key: Value, salt: int) -> Value:
    """Float32 numbers in [0, 1), shape [rows, columns].

    Args:
        rows: first size.
        columns: second size.
        key: int32 scalar; another key gives independent numbers.
        salt: a constant below 2**31 that tells apart several draws with one key.
    """
    start = _mix(key + _int32_scalar(salt))
    # The counters are added to the key before they are multiplied: a product of constants is folded by MindSpore 2.7's
    # graph compiler in float32, which loses its low bits.
    row = _mix((start + _arange(rows)) * _int32_scalar(_GOLDEN))
    column = (start + _arange(columns)) * _int32_scalar(_MIX1)
    bits = _mix(row.reshape(rows, 1) + column.reshape(1, columns))
    return _bit_and(bits, _LOW_24_BITS).astype(mstype.float32) * (1.0 / (1 << 24))


def keep_mask(rows: int, columns: int, drop_rate: float, key: Value, salt: int) -> Value:
    """1 / (1 - drop_rate) where a value is kept, else 0: float32 [rows, columns]."""
    return at_least(uniform(rows, columns, key, salt), drop_rate) * (1.0 / (1.0 - drop_rate))


def key_tensor(value: int) -> Tensor:
    """A key from any integer, folded to the int32 scalar that ``uniform`` takes."""
    return Tensor(np.array(value & 0xFFFFFFFF, np.uint32).view(np.int32))
