"""bfloat16, the upper half of a float32: its sign, its exponent, and 7 of its 23 bits of mantissa, as uint16."""

import numpy as np


def pack(values):
    """float32 (n,) rounded to bfloat16, to nearest, ties to even: their upper halves as uint16 (n,). NaN stays NaN."""
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def unpack(packed):
    """bfloat16 as uint16 (n,) back to float32 (n,)."""
    return (packed.astype(np.uint32) << 16).view(np.float32)
