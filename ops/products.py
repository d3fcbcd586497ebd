"""The matrix product of the ops, in the precision that is asked for (tinygrad2/precision.py).

    highest             a b in float32
    high                a = a0 + a1, b = b0 + b1 in bfloat16:   a1 b0 + a0 b0 + a0 b1      sums are float32
    medium, bfloat16    a0 b0
    float16             a b, both rounded to float16

It is computed as the kernels for such products do it (ops/kernels/cpu/gemm), in plain array operations, so it is what
they must return; it is not fast. So "high" and "medium", which are permissions, are only computed like this if the
reference implementations were asked for (`--kernels reference`): an op without a kernel uses float32.
"""

from ops.bfloat16 import can_be_split, matmul
from tinygrad2.dispatch import kernel_mode

PARTS = {"highest": 0, "high": 2, "medium": 1, "bfloat16": 1}  # bfloat16 numbers that stand for a float32; 0: itself


def multiply(op, a, b):
    """a @ b in the precision of `op`, a Function: a (..., n, k), b (..., k, m), or vectors. Other dtypes than float32
    are never rounded."""
    xp, parts = op.xp, PARTS.get(op.precision, 0)
    if op.precision == "float16" and a.dtype == b.dtype == xp.float32:
        return a.astype(xp.float16).astype(a.dtype) @ b.astype(xp.float16).astype(b.dtype)
    emulates = op.precision == "bfloat16" or (parts > 0 and kernel_mode() == "reference")
    if not emulates or not a.dtype == b.dtype == xp.float32:
        return a @ b
    if parts > 1 and not can_be_split(xp, a, b):
        return a @ b
    return matmul(xp, a, b, parts)
