"""bfloat16, the upper half of a float32 (its sign, its exponent, and 7 of its 23 mantissa bits), kept as uint16."""

import numpy as np

from tinygrad2.backend import xp_of
from tinygrad2.dispatch import has_kernels

_BLOCK = 1 << 15  # values at a time, so that the temporaries stay in the cache


@has_kernels
def pack_bfloat16(values):
    """float32 values (n,) or (rows, n) as bfloat16 in uint16: rounded to nearest, ties to even; NaN stays NaN.

    Half of the last bit that stays is added, less the smallest amount if that bit is 0 (a tie then goes down), and the
    lower half is cut off.
    """
    xp = xp_of(values)
    packed = xp.empty(values.shape, dtype=xp.uint16)
    flat, out = values.reshape(-1), packed.reshape(-1)
    size = _BLOCK if xp is np else max(1, len(flat))
    for start in range(0, len(flat), size):
        part = flat[start : start + size]
        bits = part.view(xp.uint32)
        rounded = bits >> xp.uint32(16)
        rounded &= xp.uint32(1)
        rounded += bits
        rounded += xp.uint32(0x7FFF)
        rounded >>= xp.uint32(16)
        nan = (bits >> xp.uint32(16)) | xp.uint32(0x40)           # rounding could have made it infinite, or zero
        out[start : start + size] = xp.where(xp.isnan(part), nan, rounded)
    return packed


@has_kernels
def unpack_bfloat16(packed):
    """bfloat16 values, uint16 (n,), as float32 (n,); exact."""
    xp = xp_of(packed)
    values = packed.astype(xp.uint32)
    values <<= xp.uint32(16)
    return values.view(xp.float32)
