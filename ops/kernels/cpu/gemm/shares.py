"""The loops of blocks.py on several threads: each computes its share of the rows or columns of C."""

import threading

import numpy as np

from ops.kernels.cpu.gemm.blocks import SCRATCH_BYTES, multiply_part
from ops.kernels.cpu.numba_jit import jit
from ops.kernels.cpu.spread import spread


@jit
def multiply_shares(
    lo, hi, shares, units, edge, by_rows, M, N, K, kernel, parts, depth, a, b, start, start_stride, c, stride, scratch
):
    """Units lo .. hi of C (M, N) = start + A B; a unit has `edge` rows, or columns if not by_rows.

    Share i of `shares` begins at lo = units i // shares and has the i-th SCRATCH_BYTES of scratch to itself. The other
    arguments are those of multiply_part.
    """
    if spread(lo, hi):
        return
    own = scratch + (lo * shares + units - 1) // units * SCRATCH_BYTES
    first, last = lo * edge, min(M if by_rows else N, hi * edge)
    m_lo, m_hi = (first, last) if by_rows else (0, M)
    n_lo, n_hi = (0, N) if by_rows else (first, last)
    multiply_part(m_lo, m_hi, n_lo, n_hi, K, kernel, parts, depth, a, b, start, start_stride, c, stride, own)


class Scratch(threading.local):
    """Memory for packed blocks, one for each thread that calls `product`, kept from call to call."""

    array = np.empty(0, np.uint8)

    def address(self, shares):
        """Where `shares` times SCRATCH_BYTES begin, a multiple of 64. From 4 MiB on NumPy asks for huge pages."""
        size = max(shares * SCRATCH_BYTES, 1 << 22) + 64
        if self.array.size < size:
            self.array = np.empty(size, np.uint8)
        return self.array.ctypes.data + -self.array.ctypes.data % 64
