"""What matrix products of a GPU must compute, for the stand-ins and for a real one: xp is the cupy module of either."""

import functools
import math

import numpy as np
import pytest

from ops.kernels.cuda.products import batched_gemm, gemm

BFLOAT16 = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
FLOAT32, FLOAT16 = np.dtype(np.float32), np.dtype(np.float16)
PAIRS = [(FLOAT32, FLOAT32), (FLOAT16, FLOAT16), (BFLOAT16, BFLOAT16), (FLOAT16, FLOAT32), (BFLOAT16, FLOAT32)]
EPS = {FLOAT32: 2.0**-24, FLOAT16: 2.0**-11, BFLOAT16: 2.0**-8}  # of rounding once, to nearest
SHAPES = [(1, 1, 1), (1, 65, 17), (17, 3, 1), (3, 130, 65), (130, 17, 3), (65, 1, 130), (17, 64, 130)]  # M, K, N
LAYOUTS = ["rows", "columns", "rows apart", "columns apart", "neither", "reversed", "offset"]

roundings = 4  # of the sums: a GPU's tensor cores add with fewer bits than the stand-in


def numbers(shape, dtype, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def laid_out(xp, values, layout):
    """A device array with these values, (..., R, C), lying in memory as `layout` says; NaN lies around it."""
    *batch, R, C = values.shape
    canary = functools.partial(np.full, fill_value=np.nan, dtype=values.dtype)
    if layout == "rows":
        memory = view = xp.asarray(canary(values.shape))
    elif layout == "columns":
        view = xp.asarray(canary((*batch, C, R))).swapaxes(-1, -2)
    elif layout == "rows apart":
        view = xp.asarray(canary((*batch, R, C + 7)))[..., 3 : C + 3]
    elif layout == "columns apart":
        view = xp.asarray(canary((*batch, C, R + 5))).swapaxes(-1, -2)[..., 2 : R + 2, :]
    elif layout == "neither":
        view = xp.asarray(canary((*batch, R, 2 * C)))[..., ::2]
    elif layout == "reversed":
        view = xp.asarray(canary((*batch, R, C)))[..., ::-1, :]
    else:                                                         # an address that is a multiple of one element only
        memory = xp.asarray(canary((math.prod(values.shape) + 1,)))
        view = memory[1:].reshape(values.shape)
    view[...] = xp.asarray(values)
    return view


def exact(a, b):
    return np.matmul(a.astype(np.float64), b.astype(np.float64))


def check(got, expected, dtype, size, extra=0.0):
    """One rounding to dtype away, elementwise, and `roundings` of float32's of the terms that were summed (`size`, the
    sum of their magnitudes); and `extra`."""
    assert got.dtype == dtype and got.shape == expected.shape
    got = got.get().astype(np.float64)
    allowed = 1.01 * EPS[dtype] * np.abs(expected) + roundings * EPS[FLOAT32] * size + extra
    wrong = ~(np.abs(got - expected) <= allowed + 1e-7 * (dtype == FLOAT16))
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size} numbers, first {np.argwhere(wrong)[0]}"


def all_kinds_of_products(cp, pairs=PAIRS):
    for dtype, result in pairs:
        a, b = numbers((33, 130), dtype), numbers((130, 18), dtype, 1)
        out, bias = numbers((33, 18), result, 2), numbers((18,), result, 3)
        size = exact(np.abs(a), np.abs(b)) + np.abs(out.astype(np.float64)) + np.abs(bias.astype(np.float64))
        places = ("rows", "rows apart", "columns apart", "offset"), ("columns", "rows apart", "rows", "offset")
        for layout, other in zip(*places):
            place = laid_out(cp, out, layout)
            operands = laid_out(cp, a, layout), laid_out(cp, b, other)
            gemm(*operands, place)
            check(place, exact(a, b), result, size)
        check(gemm(*operands, bias=cp.asarray(bias), dtype=result), exact(a, b) + bias, result, size)
        a, b = a[:32].reshape(4, 8, 130), numbers((4, 130, 6), dtype, 4)
        size = exact(np.abs(a), np.abs(b))
        for layout in ("rows", "rows apart"):
            got = batched_gemm(laid_out(cp, a, layout), laid_out(cp, b, layout), dtype=result)
            check(got, exact(a, b), result, size)
