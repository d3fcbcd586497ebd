"""The product of one row and a weight (I, O): a text that is generated, one token each time.

The weight is read as it is in memory, by all threads: blocks of its rows, eight rows at a time, each block with sums of
its own, which are added in order. BLAS read narrow matrices (3072 x 768) by one thread. The order of the sums does not
depend on the number of threads, and blocks of 64 terms keep rounding errors about as small as BLAS's.
"""

import numpy as np

from ops.kernels.cpu.numba_jit import helper, jit
from ops.kernels.cpu.spread import spread
from tinygrad2.system.threads import POOL

_DEPTH = 64                                                       # rows of a block
_GRAIN = 1 << 16                                                  # weights of a part, at least


def product(row, weight, bias, out):
    """out = row weight + bias: float32 (1, I), contiguous (I, O), (O,), (1, O)."""
    n_in, n_out = weight.shape
    partial = np.empty((-(-n_in // _DEPTH), n_out), np.float32)
    POOL.split(_blocks, len(partial), row, weight, partial, grain=-(-_GRAIN // (_DEPTH * n_out)))
    _total(0, n_out, partial, bias, out)


@jit
def _blocks(lo, hi, x, weight, partial):
    if spread(lo, hi):
        return
    n_in = len(weight)
    for block in range(lo, hi):
        total = partial[block]
        total[:] = 0
        add_block(x[0], weight, block * _DEPTH, min(n_in, (block + 1) * _DEPTH), total)


@jit
def _total(lo, hi, partial, bias, out):
    if spread(lo, hi):
        return
    total = out[0, lo:hi]
    total[:] = 0
    for block in range(len(partial)):
        row = partial[block, lo:hi]
        for j in range(total.size):
            total[j] += row[j]
    row = bias[lo:hi]
    for j in range(total.size):
        total[j] += row[j]


@helper
def add_block(x, weight, start, stop, total):
    """Add what rows start .. stop - 1 of the weight make of x."""
    full = stop - (stop - start) % 8
    for k in range(start, full, 8):
        _add_eight(x[k:], weight[k:], total)
    for k in range(full, stop):
        row, factor = weight[k], x[k]
        for j in range(total.size):
            total[j] += factor * row[j]


@helper
def _add_eight(x, w, total):
    """Add what the first eight rows of w make of x."""
    x0, x1, x2, x3 = x[0], x[1], x[2], x[3]
    x4, x5, x6, x7 = x[4], x[5], x[6], x[7]
    w0, w1, w2, w3 = w[0], w[1], w[2], w[3]
    w4, w5, w6, w7 = w[4], w[5], w[6], w[7]
    for j in range(total.size):
        total[j] += (
            x0 * w0[j] + x1 * w1[j] + x2 * w2[j] + x3 * w3[j]
            + x4 * w4[j] + x5 * w5[j] + x6 * w6[j] + x7 * w7[j]
        )  # fmt: skip
