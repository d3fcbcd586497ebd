"""The first rungs of the ladder: the product in plain loops, as Numba compiles them. Float32, on one thread.

They are here to be read and measured (`python -m benchmarks.ops gemm --ladder`); nothing else calls them.
"""

import numpy as np

from ops.kernels.cpu.numba_jit import compiled, helper

_ROWS, _COLUMNS, _DEPTH = 64, 96, 64                              # of a block: of b they are 24 KiB: the L1 cache


@compiled
def three_loops(a, b, out):
    """out = a b, as the formula is written: each element of out a row of a times a column of b.

    The column's numbers are a whole row apart: each one is in another cache line, of which the other 60 bytes are
    thrown away before they are needed. The processor waits for memory.
    """
    M, K = a.shape
    for i in range(M):
        for j in range(b.shape[1]):
            total = np.float32(0)
            for k in range(K):
                total += a[i, k] * b[k, j]
            out[i, j] = total


@compiled
def blocked(a, b, out):
    """out = a b, block by block: each block of b is read into the cache once and meets 64 rows of a there.

    The inner loop runs along rows of b and out, so it reads whole cache lines and becomes vector instructions. But each
    multiply-add loads a vector of b and one of out, and stores one: memory instructions, not arithmetic, are the limit.
    """
    (M, K), N = a.shape, b.shape[1]
    out[:] = 0
    for i0 in range(0, M, _ROWS):
        for k0 in range(0, K, _DEPTH):
            for j0 in range(0, N, _COLUMNS):
                for i in range(i0, min(M, i0 + _ROWS)):
                    total = out[i, j0 : j0 + _COLUMNS]
                    for k in range(k0, min(K, k0 + _DEPTH)):
                        x, row = a[i, k], b[k, j0 : j0 + _COLUMNS]
                        for j in range(total.size):
                            total[j] += x * row[j]


@compiled
def packed(a, b, out):
    """out = a b with a copy of each block of b, whose rows then follow each other in memory.

    Rows of b that are a multiple of 4 KiB apart, as in GPT-2, compete for the same few places of the cache, and each
    lies in a memory page of its own. The copy has neither fault: it is read from its beginning to its end, once for
    each row of a. Eight rows of it are multiplied at a time: a vector of out is loaded and stored once for eight
    multiply-adds. The next rung (microkernel.py) keeps a whole block of out in registers instead.
    """
    (M, K), N = a.shape, b.shape[1]
    block = np.zeros((_DEPTH, _COLUMNS), np.float32)
    x = np.zeros(_DEPTH, np.float32)
    out[:] = 0
    for k0 in range(0, K, _DEPTH):
        depth = min(_DEPTH, K - k0)
        for j0 in range(0, N, _COLUMNS):
            width = min(_COLUMNS, N - j0)
            for k in range(_DEPTH):                               # beyond K: zeros, so that eight rows can be added
                row = block[k]
                for j in range(width):
                    row[j] = b[k0 + k, j0 + j] if k < depth else np.float32(0)
            for i in range(M):
                for k in range(_DEPTH):
                    x[k] = a[i, k0 + k] if k < depth else np.float32(0)
                total = out[i, j0 : j0 + width]
                for k in range(0, depth, 8):
                    _add_eight_rows(x[k:], block[k:], total)


@helper
def _add_eight_rows(x, rows, total):
    x0, x1, x2, x3 = x[0], x[1], x[2], x[3]
    x4, x5, x6, x7 = x[4], x[5], x[6], x[7]
    r0, r1, r2, r3 = rows[0], rows[1], rows[2], rows[3]
    r4, r5, r6, r7 = rows[4], rows[5], rows[6], rows[7]
    for j in range(total.size):
        total[j] += (
            x0 * r0[j] + x1 * r1[j] + x2 * r2[j] + x3 * r3[j]
            + x4 * r4[j] + x5 * r5[j] + x6 * r6[j] + x7 * r7[j]
        )  # fmt: skip
