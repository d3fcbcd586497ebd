"""How fast the memory is read: the limit of generating text, which reads all weights once for each token.

Copying (tinygrad2/system/bandwidth.py) moves twice as many bytes a second here, half of them written.
"""

import time

import numpy as np

from ops.kernels.cpu.numba_jit import jit
from ops.kernels.cpu.spread import spread
from tinygrad2.backend import large_zeros
from tinygrad2.system.threads import POOL

_ROWS, _COLUMNS = 8, 3072                                         # eight streams, as rows of a weight


@jit
def _read(lo, hi, blocks, sums):
    if spread(lo, hi):
        return
    for i in range(lo, hi):
        a, b, c, d = blocks[i, 0], blocks[i, 1], blocks[i, 2], blocks[i, 3]
        e, f, g, h = blocks[i, 4], blocks[i, 5], blocks[i, 6], blocks[i, 7]
        total = np.float32(0)
        for j in range(a.size):
            total += ((a[j] + b[j]) + (c[j] + d[j])) + ((e[j] + f[j]) + (g[j] + h[j]))
        sums[i] = total


def reading(seconds=0.5, size=1 << 26):
    """Bytes per second that all kernel threads read together, of an array of `size` float32 that no cache holds."""
    n = size // (_ROWS * _COLUMNS)
    blocks = large_zeros(np, n * _ROWS * _COLUMNS, np.float32).reshape(n, _ROWS, _COLUMNS)
    blocks[...] = 1
    sums, best = np.empty(n, np.float32), 0.0
    _read(0, 1, blocks, sums)                                     # compiles
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        POOL.split(_read, n, blocks, sums)
        best = max(best, blocks.nbytes / (time.perf_counter() - start))
    return best
