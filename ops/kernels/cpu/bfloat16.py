"""Numbers rounded to bfloat16 on the CPU, where no instruction multiplies bfloat16: float32 multiplies them then."""

import numpy as np

from ops.kernels.cpu.numba_jit import helper, inlined, jit, split_rows
from ops.kernels.cpu.pack_bfloat16 import round_bits
from ops.kernels.cpu.spread import spread


def rounded(x):
    """float32 x (M, N) with each number as ops/bfloat16.py: operand has it, a new array in x's order of memory."""
    if x.strides[0] == 4 and x.strides[1] != 4:
        return rounded(x.T).T
    x = np.asarray(x, order="C") if x.strides[1] != 4 else x
    out = np.empty(x.shape, np.float32)
    split_rows(_round_rows, *x.shape, x.view(np.uint32), out.view(np.uint32))
    return out


@inlined
def _operand_bits(bits):
    """The bits of a float32, rounded to bfloat16; subnormal numbers become zero, as the instructions take them."""
    nearest = np.uint32(np.uint32(round_bits(bits)) << np.uint32(16))
    is_subnormal = np.uint32(bits & np.uint32(0x7FFFFFFF)) < np.uint32(0x00800000)
    return np.uint32(bits & np.uint32(0x80000000)) if is_subnormal else nearest


@helper
def round_in_place(x):
    """The same for a contiguous row (N,)."""
    bits = x.view(np.uint32)
    for j in range(bits.size):
        bits[j] = _operand_bits(bits[j])


@jit
def _round_rows(lo, hi, x, out):
    if spread(lo, hi):
        return
    for n in range(lo, hi):
        row, to = x[n], out[n]
        for j in range(row.size):
            to[j] = _operand_bits(row[j])
