"""A matrix product by our own kernels: C = A B, C += A B, C = A B + bias, for float32 matrices of any layout."""

import threading

import numpy as np

from ops.kernels.cpu.gemm.blocks import BLOCK, NUMBER, UNIT, addresses, aligned_scratch, depth_at_a_time, multiply_part
from ops.kernels.cpu.gemm.target import available, fastest
from tinygrad2.system.threads import POOL

_PART = 1 << 20                                                   # multiplications for which waking a thread pays


class _Scratch(threading.local):
    """Each thread's memory for packed blocks, made when it is first needed."""

    def __init__(self):
        self.array, self.address = aligned_scratch()


_scratch = _Scratch()


def product(a, b, out, add=False, bias=None, kernel=None):
    """out = a b, or out += a b, or out = a b + bias: float32 (M, K), (K, N), (M, N), (N,). Returns out.

    The arrays may have any strides; out must not overlap a or b. kernel: "vector", "avx512" (float32), "bf16" or "amx"
    (a and b rounded to bfloat16, sums in float32); the fastest one for float32 if None. The bits of the result do not
    depend on the number of threads. Raises ValueError for shapes or types that do not fit, and where the processor
    lacks what the kernel needs.
    """
    kernel = kernel or fastest("highest")
    _check(a, b, out, add, bias, kernel)
    (M, K), N = a.shape, b.shape[1]
    if M == 0 or N == 0 or K == 0:
        if not add:
            out[:] = 0 if bias is None else bias
        return out
    if out.strides[1] != 4 and N > 1:
        if out.strides[0] != 4 or bias is not None:
            whole = np.array(out) if add else np.empty((M, N), np.float32)
            out[:] = product(a, b, whole, add, bias, kernel)
            return out
        product(b.T, a.T, out.T, add, None, kernel)               # the transpose has rows that we can write
        return out
    if not add:
        bias = np.zeros(N, np.float32) if bias is None else np.ascontiguousarray(bias)
    start, start_stride = (out.ctypes.data, out.strides[0]) if add else (bias.ctypes.data, 0)
    by_rows = M > N
    units, edge = _units(M, N, kernel, by_rows)
    grain = -(-_PART * units // (M * N * K))
    args = (M, N, K, NUMBER[kernel], UNIT[kernel], depth_at_a_time(K, UNIT[kernel]), addresses(a, 1), addresses(b, 0),
            start, start_stride, out.ctypes.data, out.strides[0])
    POOL.split(_part, units, by_rows, edge, *args, grain=max(1, grain))
    return out


def _units(M, N, kernel, by_rows):
    """(number of parts that may be divided among threads, rows or columns of each)."""
    rows, columns = BLOCK[kernel]
    edge = max(16, rows) if by_rows else columns
    return -(-(M if by_rows else N) // edge), edge


def _part(lo, hi, by_rows, edge, M, N, *args):
    lo, hi = lo * edge, min(M if by_rows else N, hi * edge)
    part = (lo, hi, 0, N) if by_rows else (0, M, lo, hi)
    multiply_part(*part, *args, _scratch.address)


def _check(a, b, out, add, bias, kernel):
    if kernel not in NUMBER or not available(kernel):
        raise ValueError(f"the micro-kernel {kernel!r} is not available here")
    arrays = [array for array in (a, b, out, bias) if array is not None]
    if any(array.dtype != np.float32 for array in arrays):
        raise ValueError("the matrices must be float32")
    fits = a.ndim == b.ndim == 2 and a.shape[1] == b.shape[0]
    fits = fits and out.shape == (len(a), b.shape[1])
    if not fits or bias is not None and bias.shape != out.shape[1:]:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise ValueError(f"the shapes {shapes} do not fit a product")
    if add and bias is not None:
        raise ValueError("either add or bias")
