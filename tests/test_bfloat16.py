"""ops/bfloat16.py against exact rules in fractions, and against what the files of bfloat16 use."""

from fractions import Fraction

import numpy as np
import pytest

from ops.bfloat16 import SMALLEST, matmul, operand, round_to_bfloat16, split
from tinygrad2.bfloat16 import pack_bfloat16

SPECIAL = [0.0, -0.0, 1.0, 3.3895e38, 3.3895313e38, 3.3961775e38, 3.4e38, -3.4e38, 1e-40, -1e-45, 2.0**-126,
           2.0**-126 - 2.0**-149, np.inf, -np.inf, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-8 + 2.0**-20]  # fmt: skip


def numbers():
    """Every kind of float32: random bits of all exponents, and the special ones; no NaN."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, 20_000, dtype=np.uint64).astype(np.uint32)
    x = np.concatenate([np.float32(SPECIAL), bits.view(np.float32)])
    return x[~np.isnan(x)]


def nearest(x):
    """The bfloat16 nearest to a finite float, ties to the one whose last bit is 0, in exact arithmetic."""
    bits = int(np.float32(x).view(np.uint32))
    below = bits & 0xFFFF0000
    candidates = [below, below + 0x10000]
    values = []
    for candidate in candidates:
        if candidate & 0x7F800000 == 0x7F800000:                  # infinity: the number that one more exponent would be
            values.append(Fraction(2) ** 128 * (-1 if candidate >> 31 else 1))
        else:
            values.append(Fraction(float(np.uint32(candidate).view(np.float32))))
    distances = [abs(value - Fraction(float(x))) for value in values]
    if distances[0] == distances[1]:
        return candidates[candidates[0] >> 16 & 1]
    return candidates[distances.index(min(distances))]


def test_rounding_is_to_the_nearest_ties_to_even():
    x = numbers()
    got = round_to_bfloat16(np, x).view(np.uint32)
    for value, bits in zip(x, got):
        want = nearest(value) if np.isfinite(value) else int(value.view(np.uint32))
        assert bits == want, value
    assert (got >> 16 == pack_bfloat16(x)).all()


def test_nan_stays_nan_with_its_sign():
    bits = np.uint32([0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF, 0x7FC00000])
    got = round_to_bfloat16(np, bits.view(np.float32))
    assert np.isnan(got).all() and (np.signbit(got) == np.signbit(bits.view(np.float32))).all()


def test_layouts_and_empty_arrays():
    x = np.random.default_rng(0).standard_normal((6, 8), dtype=np.float32)
    for view in (x.T, x[::-2, ::3], x[:0], np.float32(1.2345)):
        assert (round_to_bfloat16(np, view) == round_to_bfloat16(np, np.array(view))).all()


def test_operands_have_no_subnormal_numbers():
    x = numbers()
    got = operand(np, x)
    tiny = np.abs(x) < SMALLEST
    assert tiny.any() and (got[tiny] == 0).all() and (np.signbit(got) == np.signbit(x)).all()
    assert (got[~tiny] == round_to_bfloat16(np, x[~tiny])).all()


@pytest.mark.parametrize("parts, bits", [(1, 8), (2, 16), (3, 24)])
def test_parts_have_8_more_bits_each(parts, bits):
    x = numbers()
    x = x[(np.abs(x) < 3e38) & (np.abs(x) > 2.0**-100)]
    total = sum(part.astype(np.float64) for part in split(np, x, parts))
    assert (np.abs(total - x) <= 2.0**-bits * np.abs(x.astype(np.float64))).all()


@pytest.mark.parametrize("parts, most", [(1, 4e-3), (2, 1e-5), (3, 6e-7)])
def test_errors_of_products(parts, most):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((60, 500), dtype=np.float32), rng.standard_normal((500, 70), dtype=np.float32)
    exact = a.astype(np.float64) @ b
    error = np.sqrt(np.mean((matmul(np, a, b, parts) - exact) ** 2)) / exact.std()
    assert most / 20 < error < most
