"""Matrix products through BLAS of a block of queries with the keys or values of its head, for attention.py.

q, k, v, out and their gradients are (B, nh, T, hs) arrays of any layout whose last axis is contiguous: BLAS gets
the address of a head's first row and the distance of its rows, so nothing is copied.
"""

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from ops.kernels.cpu.blas_call import sgemm
from ops.kernels.cpu.numba_jit import helper, inlined


def four_axes(x):
    """x (T, hs), (B, T, hs) or (B, nh, T, hs) as the last of these, copied only if BLAS could not read it."""
    if x.strides[-1] != 4 or min(x.strides) <= 0 or any([stride % 4 for stride in x.strides]):
        x = np.asarray(x, order="C")
        if x.strides[-1] != 4 or min(x.strides) <= 0:
            x = x.copy()
    return x if x.ndim == 4 else x[(None,) * (4 - x.ndim)]


@inlined
def _row(x, b, h, t):
    """The memory address of row t of a head."""
    return x.ctypes.data + b * x.strides[0] + h * x.strides[1] + t * x.strides[2]


@intrinsic
def _pointer(typingctx, address):
    """A memory address as Numba's carray takes it."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], ir.PointerType(ir.IntType(8)))

    return types.voidptr(types.int64), codegen


@inlined
def row_of_head(x, b, h, t):
    """x[b, h, t] as an array (hs,) of which the compiler knows that its elements are neighbours."""
    return carray(_pointer(_row(x, b, h, t)), (x.shape[3],), np.float32)


@inlined
def _distance(x):
    """How far apart rows are, in elements."""
    return max(x.strides[2] // 4, x.shape[3])


@helper
def _scale_rows(x, b, h, t, scale, out):
    """out = scale x[t : t + m], for out (m, hs)."""
    m, hs = out.shape
    for i in range(m):
        for j in range(hs):
            out[i, j] = scale * x[b, h, t + i, j]


@inlined
def rows_times_rows(gemm, x, y, b, h, t, scale, rows, w):
    """w = scale x[t : t + m] yT[: n], for w (m, n): scores. If scale is not 1, scaled x is written to rows (at least m,
    hs): products of x and y may be too large for a float32 where those of scaled x are not."""
    m, n = w.shape
    at, distance = _row(x, b, h, t), _distance(x)
    if scale != 1:
        _scale_rows(x, b, h, t, scale, rows[:m])
        at, distance = rows.ctypes.data, rows.shape[1]
    others = _row(y, b, h, 0)
    hs = x.shape[3]
    sgemm(
        gemm, False, True, m, n, hs, 1.0,
        at, distance,
        others, _distance(y), 0.0,
        w.ctypes.data, n,
    )  # fmt: skip


@inlined
def weights_times_rows(gemm, w, y, b, h, t, out):
    """out[t : t + m] = w y[: n], for w (m, n): rows mixed by weights."""
    m, n = w.shape
    rows = _row(y, b, h, 0)
    target = _row(out, b, h, t)
    hs = y.shape[3]
    sgemm(
        gemm, False, False, m, hs, n, 1.0,
        w.ctypes.data, n,
        rows, _distance(y), 0.0,
        target, _distance(out),
    )  # fmt: skip


@inlined
def add_transposed(gemm, w, x, b, h, t, beta, out):
    """out[: n] = wT x[t : t + m] + beta out[: n], for w (m, n): what each of n rows gets from the block."""
    m, n = w.shape
    rows = _row(x, b, h, t)
    target = _row(out, b, h, 0)
    hs = x.shape[3]
    sgemm(
        gemm, True, False, n, hs, m, 1.0,
        w.ctypes.data, n,
        rows, _distance(x), beta,
        target, _distance(out),
    )  # fmt: skip
