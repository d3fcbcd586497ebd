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

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ops.attention import Attention
from ops.kernels.cpu.blas_library import find
from ops.kernels.cpu.blas_threads import ThreadSwitch
from ops.kernels.cpu.copy_bytes import copy_bytes
from ops.kernels.cpu.numba_jit import helper, jit
from ops.kernels.cpu.spread import spread
from ops.linear import Linear
from ops.linear_cross_entropy import LinearCrossEntropy
from ops.linear_int8 import LinearInt8
from ops.matmul import MatMul
from ops.mlp import MLP
from tinygrad2.dispatch import AROUND
from tinygrad2.system.threads import POOL

_ROW_MAJOR = 101                                                  # as in cblas.h


# Larger products are cut in parts here, one per thread, and each part runs on one BLAS thread. There are two reasons.
# BLAS's own threads wait for each other several times in a product, which costs nothing on a quiet machine and up to
# 4 ms each time another program wants a core; ours meet once, at the end. And with BLAS's threads the last bits
# depend on how many there are; with ours they do not, because parts end where BLAS's own tiles end, and none is so
# small that BLAS takes its routine for small products. So 1 rank with 4 threads and 4 ranks with 1 thread compute the
# same bits.
_PART = 1 << 20                                                   # multiplications of a part, at least
_SMALL, _SMALL_ROW = 1 << 18, 9216                                # up to these, OpenBLAS uses one thread by itself
_EDGE = 32                                                        # parts end at multiples of this

_sgemm, _set_threads, vendor = find()
available = _sgemm is not None
address = ctypes.cast(_sgemm, ctypes.c_void_p).value if available else 0
NOTHING = ONE_THREAD = ALL_THREADS = contextlib.nullcontext()     # around products of ours, and of NumPy
if vendor == "OpenBLAS":                                          # that NumPy computes with, too: blas_threads.py
    _switch = ThreadSwitch(_set_threads)
    ONE_THREAD, ALL_THREADS = _switch.one, _switch.all
    AROUND.update(dict.fromkeys((Attention, Linear, LinearCrossEntropy, LinearInt8, MatMul, MLP), ALL_THREADS))


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
    units = max(M, N) // _EDGE                                    # the last one takes in what is left
    grain = -(-_PART // (_EDGE * min(M, N) * K))                  # units of one part, at least
    how = (*_layout(a), *_layout(b), max(N, out.strides[0] // 4), float(scale), float(add or bias is not None))
    addresses = address, a.ctypes.data, b.ctypes.data, out.ctypes.data, 0 if bias is None else bias.ctypes.data
    POOL.split(_parts, units, units, M, N, K, *how, *addresses, grain=grain, within=switch_for(M * N * K))
    return out


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


# -- from compiled loops ---------------------------------------------------------------------------------------------


@intrinsic
def _call(typingctx, function, how_a, how_b, M, N, K, alpha, a, lda, b, ldb, beta, c, ldc):
    """cblas_sgemm by its address."""
    i32, i64, f32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
    kinds = [i32] * 3 + [i64] * 3 + [f32, i64, i64, i64, i64, f32, i64, i64]

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], ir.PointerType(ir.FunctionType(ir.VoidType(), kinds)))
        builder.call(pointer, [ir.Constant(i32, _ROW_MAJOR), *args[1:]])
        return cgutils.get_null_value(i64)

    i, e, f = types.int64, types.int32, types.float32
    return types.int64(i, e, e, i, i, i, f, i, i, i, i, f, i, i), codegen


@helper
def sgemm(function, a_transposed, b_transposed, M, N, K, alpha, a, lda, b, ldb, beta, c, ldc):
    """c = alpha a b + beta c, for memory addresses a, b, c and row distances lda, ldb, ldc; function is `address`."""
    how_a = np.int32(112) if a_transposed else np.int32(111)
    how_b = np.int32(112) if b_transposed else np.int32(111)
    _call(function, how_a, how_b, M, N, K, np.float32(alpha), a, lda, b, ldb, np.float32(beta), c, ldc)


@jit
def _parts(lo, hi, units, M, N, K, a_transposed, lda, b_transposed, ldb, ldc, scale, beta, function, a, b, c, bias):
    if spread(lo, hi):
        return
    first, rows, columns = lo * _EDGE, M, N
    if M >= N:                                                    # parts of the rows of a and c
        rows = (M if hi == units else hi * _EDGE) - first         # units may be 0: all of it
        a += 4 * first * (1 if a_transposed else lda)
        c += 4 * first * ldc
    else:                                                         # or of the columns of b and c
        columns = (N if hi == units else hi * _EDGE) - first
        b += 4 * first * (ldb if b_transposed else 1)
        c += 4 * first
        bias += 4 * first if bias else 0
    if bias:                                                      # to which the product is added: beta is 1
        for row in range(rows):
            copy_bytes(c + 4 * ldc * row, bias, 4 * columns)
    sgemm(function, a_transposed, b_transposed, rows, columns, K, scale, a, lda, b, ldb, beta, c, ldc)
