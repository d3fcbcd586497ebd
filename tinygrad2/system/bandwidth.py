"""How fast the memory is."""

import time

from tinygrad2.system.threads import POOL


def bandwidth(seconds=0.5, size=1 << 25, xp=None):
    """Bytes per second through memory with all kernel threads, the better of copying and adding float32 arrays (size,).

    Reads and writes both count: copying moves the array twice, adding three times. The arrays should be larger than any
    cache. `xp`: CuPy measures the memory of the GPU; the default is NumPy.
    """
    import numpy as np  # late: threads must be planned before NumPy is loaded

    xp = np if xp is None else xp
    source, target = xp.ones(size, np.float32), xp.ones(size, np.float32)

    def copy(lo, hi):
        target[lo:hi] = source[lo:hi]

    def add(lo, hi):
        xp.add(source[lo:hi], target[lo:hi], out=target[lo:hi])

    best, begin = 0.0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        for work, passes in ((copy, 2), (add, 3)):
            start = time.perf_counter()
            if xp is np:
                POOL.split(work, size)
            else:
                work(0, size)
                float(target[0])  # waits for the GPU
            best = max(best, passes * source.nbytes / (time.perf_counter() - start))
    return best
