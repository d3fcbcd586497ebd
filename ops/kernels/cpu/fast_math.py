"""float32 functions of single values that LLVM can vectorise; those of the C library are called once per element."""

import math

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ops.kernels.cpu.numba_jit import inlined


@intrinsic
def bits_to_float32(typingctx, bits):
    """The float32 with these 32 bits."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@intrinsic
def max32(typingctx, a, b):
    """The larger of two float32. Written as `a if a > b else b` a running maximum does not vectorise; this does."""

    def codegen(context, builder, signature, args):
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.FloatType(), [ir.FloatType()] * 2), "llvm.maxnum.f32"
        )
        return builder.call(function, args, fastmath=("nsz", "nnan", "reassoc"))

    return types.float32(types.float32, types.float32), codegen


@intrinsic
def floor32(typingctx, x):
    """The largest whole number up to x, as a float32. `math.floor` makes an int64 of it: AVX2 has no such conversion
    of vectors, so it would be done element by element."""

    def codegen(context, builder, signature, args):
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.FloatType(), [ir.FloatType()]), "llvm.floor.f32"
        )
        return builder.call(function, args)

    return types.float32(types.float32), codegen


_LOG2E = np.float32(1 / math.log(2))
_LN2_HI, _LN2_LO = np.float32(0.693359375), np.float32(-2.12194440e-4)   # ln 2 in two parts, Cody and Waite 1980
_LOWEST, _HIGHEST = np.float32(-69.0), np.float32(88.0)            # e^-69 = 1e-30: what is smaller never matters here
_ONE, _HALF = np.float32(1), np.float32(0.5)
_C2, _C3, _C4, _C5, _C6, _C7 = (np.float32(1 / math.factorial(k)) for k in range(2, 8))


@inlined
def exp32(x):
    """e^x for float32 x, held to -69 .. 88; relative error below 3e-7.

    x = n ln 2 + f with |f| <= ln 2 / 2, so e^x = 2^n e^f: the first by setting the exponent's bits, the second by its
    Taylor polynomial of degree 7, whose error at the ends is f^8/8! = 5e-9.
    """
    x = _LOWEST if x < _LOWEST else x                             # NaN passes both comparisons
    x = _HIGHEST if x > _HIGHEST else x
    n = floor32(x * _LOG2E + _HALF)
    f = (x - n * _LN2_HI) - n * _LN2_LO
    p = _C2 + f * (_C3 + f * (_C4 + f * (_C5 + f * (_C6 + f * _C7))))
    p = _ONE + f * (_ONE + f * p)
    return p * bits_to_float32((np.int32(n) + np.int32(127)) << np.int32(23))
