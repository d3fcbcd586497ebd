"""The matrix product of the ops, in the precision that is asked for (tinygrad2/precision.py).

    highest             a b in float32
    high                a = a0 + a1, b = b0 + b1 in bfloat16:   a1 b0 + a0 b0 + a0 b1      sums are float32
    medium, bfloat16    a0 b0

It is computed as the kernels for such products do it (ops/kernels/cpu/gemm), in plain array operations, so it is what
they must return; it is not fast. A GPU, which has no such kernels yet, takes the permissions "high" and "medium" as
what they are and computes in float32.
"""

from ops.bfloat16 import can_be_split, matmul

PARTS = {"highest": 0, "high": 2, "medium": 1, "bfloat16": 1}  # bfloat16 numbers that stand for a float32; 0: itself


def multiply(op, a, b):
    """a @ b in the precision of `op`, a Function: a (..., n, k), b (..., k, m), or vectors. Other dtypes than float32
    are never rounded."""
    xp, parts = op.xp, PARTS[op.precision]
    permitted_only = op.precision != "bfloat16" and xp.__name__ == "cupy"
    if parts == 0 or permitted_only or not a.dtype == b.dtype == xp.float32:
        return a @ b
    if parts > 1 and not can_be_split(xp, a, b):
        return a @ b
    return matmul(xp, a, b, parts)
