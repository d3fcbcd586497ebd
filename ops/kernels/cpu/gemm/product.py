"""A matrix product by our own kernels: C = A B, C += A B, C = A B + bias, for float32 matrices of any layout."""

import numpy as np

from ops.kernels.cpu import skinny_gemm
from ops.kernels.cpu.gemm.blocks import KERNELS, addresses, depth_at_a_time
from ops.kernels.cpu.gemm.shares import Scratch, multiply_shares
from ops.kernels.cpu.gemm.splittable import can_be_split
from ops.kernels.cpu.gemm.target import available, fastest_float32
from ops.kernels.cpu.gemm.tiles import LINES
from tinygrad2.system.threads import POOL, plan_threads

_PART = 1 << 20                                                   # multiplications for which waking a thread pays
_scratch = Scratch()


def product(a, b, out, add=False, bias=None, kernel=None):
    """out = a b, or out += a b, or out = a b + bias: float32 (M, K), (K, N), (M, N), (N,). Returns out.

    The arrays may have any strides; out must not overlap a or b. The bits of the result do not depend on the number of
    threads. Raises ValueError for shapes or types that do not fit, and where the processor lacks what the kernel needs.

    kernel    "vector", "avx512"      float32; one of them if None
              "bf16", "amx"           a and b rounded to bfloat16, sums in float32
              "amx x3", "amx x6"      a and b as sums of bfloat16 numbers: errors of 4e-6, and of float32. Where such
                                      sums cannot be exact (splittable.py) a float32 kernel computes instead
    """
    kernel = kernel or fastest_float32()
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
    micro_kernel, parts, rows, columns = KERNELS[kernel]
    if M <= skinny_gemm.MOST and parts == 0 and not add and _can_be_read_in_place(b, out):
        return skinny_gemm.product(np.asarray(a, order="C"), b, bias, out)
    if parts > 1 and not can_be_split(a, b):
        micro_kernel, parts, rows, columns = KERNELS[fastest_float32()]
    if not add:
        bias = np.zeros(N, np.float32) if bias is None else np.ascontiguousarray(bias)
    start, start_stride = (out.ctypes.data, out.strides[0]) if add else (bias.ctypes.data, 0)
    by_rows = M > N
    edge = max(LINES, rows) if by_rows else columns
    units = -(-(M if by_rows else N) // edge)
    grain = max(1, -(-_PART * units // (M * N * K)))
    if POOL.threads is None:
        plan_threads()
    shares = min(POOL.threads, max(1, units // grain))            # as POOL.split divides them
    args = (M, N, K, micro_kernel, parts, depth_at_a_time(K, parts), addresses(a, 1), addresses(b, 0),
            start, start_stride, out.ctypes.data, out.strides[0], _scratch.address(shares))
    POOL.split(multiply_shares, units, shares, units, edge, by_rows, *args, grain=grain)
    return out


def _can_be_read_in_place(b, out):
    """Does this suit skinny_gemm? For few rows of a, packing b takes longer than the product."""
    return (b.flags.c_contiguous or b.T.flags.c_contiguous) and b.flags.aligned and out.flags.carray


def _check(a, b, out, add, bias, kernel):
    if kernel not in KERNELS or not available(kernel):
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
    if not out.flags.writeable:
        raise ValueError("out is read-only")
