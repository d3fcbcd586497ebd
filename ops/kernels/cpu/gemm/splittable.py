"""Can float32 matrices be split into bfloat16 parts without loss? The same rules as in ops/bfloat16.py, which explains
them: most can; what is very large or very small cannot."""

import numpy as np

from ops.bfloat16 import LARGEST, SMALLEST_LINE, SMALLEST_PRODUCT
from ops.kernels.cpu.numba_jit import jit
from ops.kernels.cpu.spread import spread
from tinygrad2.system.threads import POOL

_GRAIN = 1 << 18


def can_be_split(a, b):
    """Do products of the parts of a (M, K) and b (K, N), both float32 and not empty, have float32's accuracy?"""
    of_rows, of_columns = largest_of_lines(a), largest_of_lines(b.T)
    if not (of_rows.max() < LARGEST and of_columns.max() < LARGEST):  # NaN is not
        return False
    row, column = (float(np.where(lines > 0, lines, np.float32(1)).min()) for lines in (of_rows, of_columns))
    return min(row, column) >= SMALLEST_LINE and row * column >= SMALLEST_PRODUCT


def largest_of_lines(x):
    """The largest magnitude in each row of x, float32 (M, K): (M,); NaN or infinity if there is one.

    Magnitudes of float32 are ordered as their bits are, read as integers without the sign; NaN is above infinity.
    """
    bits = x.view(np.int32)
    if x.strides[0] == 4 and x.strides[1] != 4:
        strips = -(-len(x) // 256)
        out = np.zeros(len(x), np.int32)
        POOL.split(_down_columns, strips, bits.T, out, grain=max(1, _GRAIN // (256 * x.shape[1])))
    else:
        out = np.zeros(len(x), np.int32)
        POOL.split(_along_rows, len(x), bits, out, grain=max(1, _GRAIN // x.shape[1]))
    return out.view(np.float32)


@jit
def _along_rows(lo, hi, bits, out):
    if spread(lo, hi):
        return
    for i in range(lo, hi):
        row, largest = bits[i], np.int32(0)
        for k in range(row.size):
            largest = max(largest, row[k] & np.int32(0x7FFFFFFF))
        out[i] = largest


@jit
def _down_columns(lo, hi, bits, out):
    """The same for the transpose, in strips of 256 columns."""
    if spread(lo, hi):
        return
    for strip in range(lo, hi):
        largest = out[256 * strip : 256 * (strip + 1)]
        for k in range(len(bits)):
            row = bits[k, 256 * strip : 256 * (strip + 1)]
            for i in range(largest.size):
                largest[i] = max(largest[i], row[i] & np.int32(0x7FFFFFFF))
