"""Matrix products in the precision that is asked for (tinygrad2/precision.py): which code computes them.

                AMX                              AVX512-BF16 of AMD       neither
    highest     six products of three parts      BLAS                     BLAS
    high        three products of two parts      BLAS                     BLAS
    medium      one bfloat16 product             one bfloat16 product     BLAS
    bfloat16    one bfloat16 product             one bfloat16 product     operands rounded first, then BLAS

BLAS is float32 (blas_gemm.py); the others are kernels of gemm/. For few rows the time is that of reading the weight,
and float32 is as fast: then permissions are not used. What BLAS gets rounded has the same numbers as what the kernels
round while they pack, so the results agree to float32's rounding of sums.
"""

import functools

import numpy as np

from ops.kernels.cpu import blas_gemm, skinny_gemm
from ops.kernels.cpu.bfloat16 import rounded
from ops.kernels.cpu.gemm import target
from ops.kernels.cpu.gemm.product import product

_HOW = {
    "amx x6": "float32 as six bfloat16 products on AMX tiles",
    "amx x3": "three bfloat16 products on AMX tiles",
    "amx": "one bfloat16 product on AMX tiles",
    "bf16": "one bfloat16 product by AVX512-BF16",
}


def gemm(a, b, out, add=False, scale=1.0, precision="highest"):
    """out = scale a b, or out += scale a b: float32 (M, K), (K, N), (M, N). Returns out.

    Rows or columns of a and b must be contiguous. A transposed view (`x.T`) is read in place.
    """
    if scale != 1 and (precision == "bfloat16" or tile_kernel(precision)):
        a, scale = a * np.float32(scale), 1.0                     # what is rounded is the gradient with its factor
    a, b, kernel = prepared(a, b, precision)
    if kernel is None:
        return blas_gemm.gemm(a, b, out, add, scale)
    return product(a, b, out, add, kernel=kernel)


def prepared(a, b, precision):
    """(a, b, kernel): the matrices to multiply, and the kernel of gemm/ that does it; None for float32 and BLAS."""
    kernel = tile_kernel(precision)
    if precision == "bfloat16":
        return (a, b, kernel) if kernel else (rounded(a), rounded(b), None)
    few = min(len(a), b.shape[1]) <= skinny_gemm.MOST
    return a, b, None if few else kernel


@functools.cache
def tile_kernel(precision):
    """The kernel of gemm/ for bfloat16 numbers that computes here, None if float32 by BLAS is faster, or no choice."""
    kernel = target.fastest("medium" if precision == "bfloat16" else precision)
    return None if kernel in ("vector", "avx512") else kernel


def describe(precision):
    """One line for the user: which code multiplies, and why not a faster one."""
    kernel = tile_kernel(precision)
    if kernel:
        return f"{precision}: {_HOW[kernel]}"
    by = f"float32 through {blas_gemm.vendor or 'NumPy'}"
    if precision == "highest":
        return f"highest: {by}"
    return f"{precision}: {'operands rounded, ' * (precision == 'bfloat16')}{by} ({_what_is_missing(precision)})"


def _what_is_missing(precision):
    if target.has("amx-tile", "amx-bf16"):
        return "the system does not permit AMX tiles"
    if precision == "high" or not target.available("bf16"):
        return "no AMX tiles here" if precision == "high" else "neither AMX tiles nor AVX512-BF16 here"
    return "no AMX tiles here, and this AVX512-BF16 is no faster"
