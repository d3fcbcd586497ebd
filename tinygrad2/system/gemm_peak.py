"""How fast the machine is."""

import time


def gemm_peak(xp, n=1024, seconds=0.1):
    """FLOP/s of the fastest of several float32 products of two n x n matrices: no training here can exceed it."""
    a = xp.ones((n, n), dtype=xp.float32)
    out = xp.empty_like(a)
    best, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        xp.matmul(a, a, out=out)
        float(out[0, 0])  # waits for a GPU
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best

