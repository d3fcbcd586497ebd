"""bfloat16 in plain array operations: what the kernels that compute with it must return.

A bfloat16 is the upper half of a float32: its sign, its 8 bits of exponent, and 7 of its 23 bits of mantissa, so it
has float32's range and 2 to 3 decimal digits. Here it is kept as a float32 whose lower half is zero. A product of two
of them is exact in float32: 8 + 8 significant bits fit into 24.
"""

SMALLEST = 2.0**-126  # the smallest normal number, of float32 and of bfloat16


def round_to_bfloat16(xp, x):
    """float32 x rounded to the nearest bfloat16, ties to even; NaN stays NaN, subnormal numbers keep their bits.

    Half of the last bit that stays is added, less the smallest amount if that bit is 0 (a tie then goes down), and the
    lower half is cut off. From 3.3962e38 on, the largest bfloat16 (3.3895e38) and half a step, it is infinite.
    """
    bits = xp.asarray(x, dtype=xp.float32, order="C").view(xp.uint32)
    upper, half = xp.uint32(0xFFFF0000), xp.uint32(0x7FFF)
    last = (bits >> xp.uint32(16)) & xp.uint32(1)
    rounded = (bits + half + last) & upper
    quiet = (bits & upper) | xp.uint32(0x00400000)  # rounding could make a NaN infinite, or zero
    return xp.where(xp.isnan(x), quiet, rounded).view(xp.float32)


def operand(xp, x):
    """float32 x as the instructions take it (AVX512-BF16, AMX): subnormal numbers are zeros, then rounded."""
    zero = xp.copysign(xp.float32(0), x)
    normal = xp.where(xp.abs(x) < xp.float32(SMALLEST), zero, x)
    return round_to_bfloat16(xp, normal)


def split(xp, x, parts):
    """float32 x as a sum of `parts` operands, largest first: [float32 array, ...].

    Each is what the ones before it leave, rounded; the subtraction is exact. Two have 16 significant bits, three 24.
    """
    rest = xp.asarray(x, dtype=xp.float32)
    found = [operand(xp, rest)]
    while len(found) < parts:
        rest = rest - found[-1]
        found.append(operand(xp, rest))
    return found


# Which parts of A and B are multiplied, smallest products first. What is left out is as small as the rounding of the
# last part: 2^-16 of a product for two parts, 2^-24, float32's own rounding, for three.
PRODUCTS = {
    1: [(0, 0)],
    2: [(1, 0), (0, 0), (0, 1)],
    3: [(2, 0), (1, 0), (1, 1), (0, 1), (0, 0), (0, 2)],
}


def matmul(xp, a, b, parts=1):
    """a b for float32 (M, K), (K, N) as one, three or six products of bfloat16 operands (parts 1, 2, 3), in float32."""
    a_parts = split(xp, a, parts)
    b_parts = split(xp, b, parts)
    total = 0
    for i, j in PRODUCTS[parts]:
        total = total + a_parts[i] @ b_parts[j]
    return total


LARGEST = 3.38e38  # above it the first part is infinite, or may be
SMALLEST_LINE, SMALLEST_PRODUCT = 2.0**-102, 2.0**-100  # 24 bits above SMALLEST, with room for a sum


def can_be_split(xp, a, b):
    """Do products of the parts of float32 a (..., M, K) and b (..., K, N) have the accuracy of the parts?

    NaN and infinity have no second part, very large numbers no first. Parts below SMALLEST become zero: a row of a
    whose largest number is far above that loses nothing that float32 would keep of its products, and so for columns of
    b. So the largest number of each row and column counts.
    """
    if a.size == 0 or b.size == 0:
        return True
    of_rows, of_columns = xp.abs(a).max(-1), xp.abs(b).max(-2 if b.ndim > 1 else -1)
    if not (float(of_rows.max()) < LARGEST and float(of_columns.max()) < LARGEST):  # NaN is not
        return False
    row, column = (float(xp.where(lines > 0, lines, 1).min()) for lines in (of_rows, of_columns))
    return min(row, column) >= SMALLEST_LINE and row * column >= SMALLEST_PRODUCT
