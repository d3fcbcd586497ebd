"""Matrix products through a BLAS library (blas_library.py), called directly.

Its C interface can do three things that `np.matmul` cannot:

- add the product to what is in `out` (beta = 1): a weight's gradient is written straight to where it belongs, and a
  bias that was written to `out` first costs no extra pass;
- run on one thread for a while, so that many small products (the heads of attention) can run in parallel;
- be called from compiled loops, by its address.

If none is found (NumPy built with another BLAS) `gemm` does the same with np.matmul, and kernels that
call it from compiled loops leave the work to the reference implementations.
"""

import contextlib
import ctypes
import functools

import numpy as np

from ops.attention import Attention
from ops.kernels.cpu.blas_call import sgemm
from ops.kernels.cpu.blas_library import columns_may_be_cut, find
from ops.kernels.cpu.blas_threads import ThreadSwitch
from ops.kernels.cpu.copy_bytes import copy_bytes
from ops.kernels.cpu.numba_jit import jit
from ops.kernels.cpu.spread import spread
from ops.linear import Linear
from ops.linear_bfloat16 import LinearBfloat16
from ops.linear_cross_entropy import LinearCrossEntropy
from ops.linear_int8 import LinearInt8
from ops.matmul import MatMul
from ops.mlp import MLP
from tinygrad2.dispatch import AROUND
from tinygrad2.system.threads import POOL

# Larger products are cut in parts here, one per thread, and each part runs on one BLAS thread. There are two reasons.
# BLAS's own threads wait for each other several times in a product, which costs nothing on a quiet machine and up to
# 4 ms each time another program wants a core; ours meet once, at the end. And with BLAS's threads the last bits
# depend on how many there are; with ours they do not, because parts end where BLAS's own tiles end, and none is so
# small that BLAS takes its routine for small products. So 1 rank with 4 threads and 4 ranks with 1 thread compute the
# same bits.
#
# OpenBLAS's kernels for AVX-512 sum every element alike. Those for AVX2 sum the outer 8 columns of what they are called
# for in another order than the others, and rows in groups of 12: there a product of N columns is not the same as its
# parts. So only rows are cut, and if there are few, columns at fixed places, whatever the number of threads.
_PART = 1 << 20                                                   # multiplications of a part, at least
_SMALL, _SMALL_ROW = 1 << 18, 9216                                # up to these, OpenBLAS uses one thread by itself
_EDGE, _ROWS = 32, 24                                             # parts end at multiples of this; AVX2: rows
_FEW = 4 * _ROWS                                                  # rows that are not cut, AVX2
_COLUMNS = 96                                                     # the least columns of a part, AVX2

_sgemm, _set_threads, vendor = find()
available = _sgemm is not None
address = ctypes.cast(_sgemm, ctypes.c_void_p).value if available else 0
NOTHING = ONE_THREAD = ALL_THREADS = contextlib.nullcontext()     # around products of ours, and of NumPy
if vendor == "OpenBLAS":                                          # that NumPy computes with, too: blas_threads.py
    _switch = ThreadSwitch(_set_threads)
    ONE_THREAD, ALL_THREADS = _switch.one, _switch.all
    _with_products = Attention, Linear, LinearBfloat16, LinearCrossEntropy, LinearInt8, MatMul, MLP
    AROUND.update(dict.fromkeys(_with_products, _switch.asked))


def gemm(a, b, out, add=False, scale=1.0, bias=None):
    """out = scale a b, or out += scale a b: float32 (M, K), (K, N), (M, N). Returns out.

    bias    contiguous (N,), for out = scale a b + bias

    Rows or columns of a and b must be contiguous. A transposed view (`x.T`) is read in place.
    """
    if not available:
        product = np.matmul(a, b) if add else np.matmul(a, b, out=out)
        if scale != 1:
            product *= scale
        if add:
            out += product
        return out if bias is None else np.add(out, bias, out=out)
    if len(a) == 1 and scale == 1 and not add:
        with ALL_THREADS if b.size >= _SMALL_ROW else NOTHING:
            np.matmul(a, b, out=out)                              # has a fast product of vector and matrix
        return out if bias is None else np.add(out, bias, out=out)
    (M, K), N = a.shape, b.shape[1]
    by_rows, fixed, edge = M >= N, False, _EDGE
    if not _columns_may_be_cut():
        by_rows, fixed, edge = M >= N or M >= _FEW, M < N and M < _FEW, _ROWS
    if fixed:
        edge = -(-max(_COLUMNS, _PART // max(1, M * K)) // _EDGE) * _EDGE
    units = (M if by_rows else N) // edge                         # the last one takes in what is left
    other = N if by_rows else M
    grain = -(-_PART // max(1, edge * other * K))                 # units of one part, at least
    how = (*_layout(a), *_layout(b), max(N, out.strides[0] // 4), float(scale), float(add or bias is not None))
    addresses = address, a.ctypes.data, b.ctypes.data, out.ctypes.data, 0 if bias is None else bias.ctypes.data
    cut = units, edge, by_rows, fixed
    POOL.split(_parts, units, *cut, M, N, K, *how, *addresses, grain=grain, within=switch_for(M * N * K))
    return out


@functools.cache
def _columns_may_be_cut():
    with ONE_THREAD:
        return vendor != "OpenBLAS" or columns_may_be_cut()


def switch_for(multiplications):
    """The context in which a product of so many runs on the thread that calls for it."""
    return NOTHING if multiplications <= _SMALL else ONE_THREAD


def _layout(matrix):
    """(is it transposed, distance of its rows or columns in elements)."""
    rows, columns = matrix.strides
    if columns == 4 or matrix.shape[1] == 1:
        return False, max(1, rows // 4, matrix.shape[1])
    return True, max(1, columns // 4, matrix.shape[0])


def readable(*matrices):
    """Can gemm read these in place: float32, with contiguous rows or columns?"""
    return all(m.dtype == np.float32 and 4 in m.strides[-2:] and min(m.strides) > 0 for m in matrices)


@jit
def _parts(
    lo, hi, units, edge, by_rows, fixed, M, N, K, a_transposed, lda, b_transposed, ldb, ldc, scale, beta, function,
    a, b, c, bias,
):  # fmt: skip
    """Units lo .. hi of the product: rows of a and c, or columns of b and c; fixed: each is a product of its own."""
    if spread(lo, hi):
        return
    step = 1 if fixed and units else max(1, hi - lo)              # units may be 0: all of it
    for unit in range(lo, max(hi, lo + 1), step):
        first, last, rows, columns = unit * edge, unit + step, M, N
        at_a, at_b, at_c, at_bias = a, b, c, bias
        if by_rows:
            rows = (M if last >= units else last * edge) - first
            at_a += 4 * first * (1 if a_transposed else lda)
            at_c += 4 * first * ldc
        else:
            columns = (N if last >= units else last * edge) - first
            at_b += 4 * first * (ldb if b_transposed else 1)
            at_c += 4 * first
            at_bias += 4 * first if bias else 0
        if bias:                                                  # to which the product is added: beta is 1
            for row in range(rows):
                copy_bytes(at_c + 4 * ldc * row, at_bias, 4 * columns)
        sgemm(function, a_transposed, b_transposed, rows, columns, K, scale, at_a, lda, at_b, ldb, beta, at_c, ldc)
