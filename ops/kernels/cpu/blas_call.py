"""cblas_sgemm called from compiled loops, by its address (blas_gemm.address): nothing of Python is in between."""

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ops.kernels.cpu.numba_jit import helper

_ROW_MAJOR = 101                                                  # as in cblas.h


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
    how, sizes = (i, e, e), (i, i, i)
    return types.int64(*how, *sizes, f, i, i, i, i, f, i, i), codegen


@helper
def sgemm(function, a_transposed, b_transposed, M, N, K, alpha, a, lda, b, ldb, beta, c, ldc):
    """c = alpha a b + beta c, for memory addresses a, b, c and row distances lda, ldb, ldc; function is `address`."""
    how_a = np.int32(112) if a_transposed else np.int32(111)
    how_b = np.int32(112) if b_transposed else np.int32(111)
    scale, share = np.float32(alpha), np.float32(beta)
    _call(
        function, how_a, how_b, M, N, K,
        scale, a, lda, b, ldb,
        share, c, ldc,
    )  # fmt: skip
