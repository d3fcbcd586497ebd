"""How fast the machine is."""

import time


def gemm_peak(xp, n=1024, seconds=0.1, least=1e-3):
    """FLOP/s of the fastest of several float32 products of two n x n matrices: no training here can exceed it.

    n is doubled until a product takes `least` seconds: on a GPU, starting a small one takes longer than computing it.
    """
    fastest = _fastest_product(xp, n, seconds)
    while fastest < least:
        n *= 2
        fastest = _fastest_product(xp, n, seconds)
    return 2 * n**3 / fastest


def _fastest_product(xp, n, seconds):
    a = xp.ones((n, n), dtype=xp.float32)
    out = xp.empty_like(a)

    def product():
        start = time.perf_counter()
        xp.matmul(a, a, out=out)
        float(out[0, 0])  # waits for a GPU
        return time.perf_counter() - start

    product()  # the first one loads libraries, starts threads
    fastest, begin = product(), time.perf_counter()
    while time.perf_counter() - begin < seconds:
        fastest = min(fastest, product())
    return fastest
