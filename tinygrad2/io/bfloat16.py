"""bfloat16, the upper half of a float32 (its sign, its exponent, and 7 of its 23 mantissa bits), kept as uint16."""

import numpy as np

_BLOCK = 1 << 15  # values at a time, so that the temporaries stay in the cache


def pack(values):
    """Returns float32 values (n,) as bfloat16 in uint16 (n,): rounded to nearest, ties to even; NaN stays NaN."""
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
    """Returns bfloat16 values, uint16 (n,), as float32 (n,); exact."""
    values = np.empty(packed.shape, np.uint32)
    np.left_shift(packed, 16, out=values, dtype=np.uint32, casting="unsafe")
    return values.view(np.float32)
