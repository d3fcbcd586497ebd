"""bfloat16, the upper half of a float32: its sign, its exponent, and 7 of its 23 bits of mantissa, as uint16."""

import numpy as np

_BLOCK = 1 << 15  # numbers at a time, so that what is made on the way stays in the cache


def pack(values):
    """float32 (n,) rounded to bfloat16, to nearest, ties to even: their upper halves as uint16 (n,). NaN stays NaN."""
    packed = np.empty(values.shape, np.uint16)
    for start in range(0, len(values), _BLOCK):
        part = values[start : start + _BLOCK]
        bits = part.view(np.uint32)
        rounded = bits >> 16
        rounded &= 1
        rounded += bits
        rounded += 0x7FFF
        rounded >>= 16
        packed[start : start + _BLOCK] = rounded
        nan = np.isnan(part)
        if nan.any():  # rounding could have made them infinite, or zero
            packed[start : start + _BLOCK][nan] = (bits[nan] >> 16) | 0x40
    return packed


def unpack(packed):
    """bfloat16 as uint16 (n,) back to float32 (n,)."""
    values = np.empty(packed.shape, np.uint32)
    np.left_shift(packed, 16, out=values, dtype=np.uint32, casting="unsafe")
    return values.view(np.float32)
