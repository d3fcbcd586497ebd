"""Matrix products in the precision that is asked for (tinygrad2/precision.py): which code computes them.

                AMX                              AVX512-BF16 of AMD       neither
    highest     six products of three parts      float32                  float32
    high        three products of two parts      float32                  float32
    medium      one bfloat16 product             one bfloat16 product     float32
    bfloat16    one bfloat16 product             one bfloat16 product     operands rounded first, then BLAS

All are kernels of gemm/; float32 is its AVX-512 kernel where that is faster, else BLAS (blas_gemm.py). For few rows the
time is that of reading the weight, and float32 is as fast: then permissions are not used. Nor are they where an axis is
short (LEAST): to split a matrix into parts takes as long as several products, and there each number is in few of them.
What BLAS gets rounded has the same numbers as what the kernels round while they pack, so the results agree to float32's
rounding of sums.
"""

import functools

import numpy as np

from ops.kernels.cpu import blas_gemm, skinny_gemm
from ops.kernels.cpu.bfloat16 import rounded
from ops.kernels.cpu.gemm import target
from ops.kernels.cpu.gemm.product import product

_HOW = {
    "amx x6": "float32, large matrices as six bfloat16 products on AMX tiles",
    "amx x3": "large matrices as three bfloat16 products on AMX tiles",
    "amx": "one bfloat16 product on AMX tiles",
    "bf16": "one bfloat16 product by AVX512-BF16",
}

LEAST = {"amx x6": (256, 256, 256), "amx x3": (256, 256, 256), "avx512": (16, 96, 96)}  # kernel -> least M, K, N
_BLOCK = 1 << 22                                                  # numbers that are rounded at a time


def gemm(a, b, out, add=False, scale=1.0, precision="highest", bias=None):
    """out = scale a b + bias, or out += scale a b: float32 (M, K), (K, N), (M, N), bias (N,) or None. Returns out.

    Rows or columns of a and b must be contiguous. A transposed view (`x.T`) is read in place.
    """
    kernel = kernel_for(a, b, precision)
    if scale != 1 and kernel == "avx512":
        kernel = None                                             # BLAS needs no copy for the factor
    if scale != 1 and (kernel or precision == "bfloat16"):
        a, scale = a * np.float32(scale), 1.0                     # what is rounded is the gradient with its factor
    if kernel:
        return product(a, b, out, add, bias=bias, kernel=kernel)
    if precision == "bfloat16":
        return _rounded_gemm(a, b, out, add, bias)
    return blas_gemm.gemm(a, b, out, add, scale, bias)


def kernel_for(a, b, precision):
    """The kernel of gemm/ that multiplies these matrices; None if BLAS does."""
    if precision == "bfloat16":
        return tile_kernel(precision)
    (M, K), N = a.shape, b.shape[1]
    for kernel in (tile_kernel(precision), "avx512" if target.beats_blas() else None):
        least = LEAST.get(kernel, (0, 0, 0))
        if kernel and min(M, N) > skinny_gemm.MOST and all(n >= at_least for n, at_least in zip((M, K, N), least)):
            return kernel
    return None


def _rounded_gemm(a, b, out, add, bias):
    """By BLAS, of operands that are rounded a block at a time: BLAS reads it from a cache, and a weight needs no copy
    of its own size. The longest of the three axes is cut; blocks depend on nothing but the shapes."""
    (M, K), N = a.shape, b.shape[1]
    if K > max(M, N):
        length = _length(M + N)
        for k in range(0, K, length):
            part_a, part_b = rounded(a[:, k : k + length]), rounded(b[k : k + length])
            blas_gemm.gemm(part_a, part_b, out, add or k > 0, bias=None if k else bias)
    elif M >= N:
        b, length = rounded(b), _length(K)
        for m in range(0, M, length):
            blas_gemm.gemm(rounded(a[m : m + length]), b, out[m : m + length], add, bias=bias)
    else:
        a, length = rounded(a), _length(K)
        for n in range(0, N, length):
            part = None if bias is None else bias[n : n + length]
            blas_gemm.gemm(a, rounded(b[:, n : n + length]), out[:, n : n + length], add, bias=part)
    return out


def _length(width):
    """How many rows of so many numbers make a block: a multiple of BLAS's own tiles."""
    return max(1, _BLOCK // (64 * width)) * 64


@functools.cache
def tile_kernel(precision):
    """The kernel of gemm/ for bfloat16 numbers that computes here, None if float32 by BLAS is faster, or no choice."""
    kernel = target.fastest("medium" if precision == "bfloat16" else precision)
    return None if kernel in ("vector", "avx512") else kernel


def uses_gemm_kernels(precision):
    """Do kernels of gemm/ compute the large products?"""
    return tile_kernel(precision) is not None or precision != "bfloat16" and target.beats_blas()


def describe(precision):
    """One line for the user: which code multiplies, and why not a faster one."""
    kernel = tile_kernel(precision)
    if kernel:
        return f"{precision}: {_HOW[kernel]}"
    by = f"float32 through {blas_gemm.vendor or 'NumPy'}"
    if target.beats_blas() and precision != "bfloat16":
        by = "float32 by AVX-512"
    if precision == "highest":
        return f"highest: {by}"
    return f"{precision}: {'operands rounded, ' * (precision == 'bfloat16')}{by} ({_what_is_missing(precision)})"


def _what_is_missing(precision):
    if target.has("amx-tile", "amx-bf16"):
        return "the system does not permit AMX tiles"
    if precision == "high" or not target.available("bf16"):
        return "no AMX tiles here" if precision == "high" else "neither AMX tiles nor AVX512-BF16 here"
    return "no AMX tiles here, and this AVX512-BF16 is no faster"
