"""Large products that are computed as two, so that tensor cores can be fed by 16 bytes.

cuBLASLt's fast algorithms want each axis that is contiguous in memory to have a multiple of 16 bytes. GPT-2's head has
50,257 columns: on an H200 its product ran at 95 TFLOP/s, and at 731 with 50,304 columns (docs/gpu.md). So where rows
begin at multiples of 16 bytes, an axis that ends between two of them is cut: 50,256 columns, and the one that is left,
which costs a second, small product. That this is as fast as 50,304 columns is expected, not measured.
"""

STEP = 8                                                          # numbers: 16 bytes of 16 bits, 32 of float32
WORTH, LEAST = 1 << 31, 512                                       # multiplications; length of the longer part


def where_to_cut(left, right, result):
    """("M", "K" or "N", length of the longer part) for a product of (M, K) by (K, N), or None.

    left, right, result    how the matrices lie in memory, each a cublaslt_problem.Matrix
    """
    M, K, N = left.rows, left.columns, right.columns
    if M * K * N < WORTH or not all(map(_is_aligned, (left, right, result))):
        return None
    contiguous = {"N": N}
    if left.transposed:
        contiguous["M"] = M
    if right.transposed or not left.transposed:
        contiguous["K"] = K
    for axis, length in contiguous.items():
        longer = length - length % STEP
        if LEAST <= longer < length:
            return axis, longer
    return None


def _is_aligned(matrix):
    return matrix.distance % STEP == 0 and matrix.alignment >= 16


def cut(a, b, out, accumulate, bias, axis, at):
    """The two products: [(a, b, out, accumulate, bias), ...], to be computed in this order.

    A sum is cut so that the shorter part comes first: where the result has 16 bits, only a small number is rounded
    once more.
    """
    if axis == "M":
        return [
            (a[:at], b, out[:at], accumulate, bias),
            (a[at:], b, out[at:], accumulate, bias),
        ]
    if axis == "K":
        return [
            (a[:, at:], b[at:], out, accumulate, None),
            (a[:, :at], b[:at], out, True, bias),
        ]
    first, second = (None, None) if bias is None else (bias[:at], bias[at:])
    return [
        (a, b[:, :at], out[:, :at], accumulate, first),
        (a, b[:, at:], out[:, at:], accumulate, second),
    ]
