"""The machine below: how fast it could go, and how its memory is kept at hand."""

import ctypes
import time

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h


def give_back_freed_memory():
    """Ask the C library to return to the system what it keeps of freed memory (glibc; elsewhere nothing happens)."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        pass


def keep_freed_memory():
    """Ask the C library to keep what NumPy frees for the next array, instead of giving it back to the system.

    A training step makes and drops the same arrays over and over; taken afresh from the system, each of their pages
    costs a fault and a wipe. Call it once the model is built. Only glibc (Linux) has these switches; elsewhere nothing
    happens.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt = libc.mallopt
    except (OSError, AttributeError):
        return
    give_back_freed_memory()  # what is free now: the arrays from which the model was built
    mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # arrays up to 32 MB, the most it takes, come from the heap
    mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
    mallopt(_M_TOP_PAD, 64 << 20)


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


def train_flops_per_token(config):
    """Floating point operations per token of forward and backward: 6 per weight in a matrix, and attention's T x T.

        6 (N - N_position) + 12 n_layer n_embd block_size            Chowdhery et al., "PaLM", 2022, appendix B
    """
    c = config
    return 6 * (c.count_parameters() - c.block_size * c.n_embd) + 12 * c.n_layer * c.n_embd * c.block_size
