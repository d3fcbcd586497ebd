"""The machine below: how fast it could go, and how its memory is kept at hand."""

import time


def gemm_peak(xp, n=1024, seconds=0.1):
    """FLOP/s of the best of several float32 products of two n x n matrices: what no training here can exceed."""
    a = xp.ones((n, n), dtype=xp.float32)
    out = xp.empty_like(a)
    best, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        xp.matmul(a, a, out=out)
        float(out[0, 0])  # a GPU answers only when it is done
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best

