"""The products of one row with a weight, in parts that threads can take: for kernels that do more with the row
(decode_block.py). Weights are read where they are, once:

    float32 (I, O)    blocks of rows, each with sums of its own, which are added in order (single_row.py)
    uint16  (O, I)    bfloat16 numbers: a dot product for each output
    int8    (O, I)    the same, times the output's scale; every fourth number of x is together (linear_int8.py)

    operand(x, weight, rounds, row)               once: x as `products` takes it
    products(lo, hi, row, weight, scale, partial) for all parts of range(n_parts(weight))
    total_of(partial, start, stop, bias, out)     for all outputs

Sums do not depend on the number of threads. The type of a weight is known when a kernel is compiled: of the branches
below one is left.
"""

import numpy as np

from ops.kernels.cpu.bfloat16 import round_in_place
from ops.kernels.cpu.linear_bfloat16 import bfloat16_products
from ops.kernels.cpu.linear_int8 import int8_products
from ops.kernels.cpu.numba_jit import helper, inlined
from ops.kernels.cpu.single_row import add_block

BLOCKS = 12                                                       # of rows of a float32 weight, at most
_DEPTH = 64                                                       # rows whose products are summed apart


@inlined
def n_blocks(weight):
    """Into so many sums the products with this weight are divided."""
    return -(-len(weight) // _rows_of_block(weight)) if weight.itemsize == 4 else 1


@inlined
def _rows_of_block(weight):
    return -(-len(weight) // (_DEPTH * BLOCKS)) * _DEPTH


@inlined
def n_parts(weight):
    """Parts that threads can take: blocks of rows, or outputs."""
    return n_blocks(weight) if weight.itemsize == 4 else len(weight)


@helper
def products(lo, hi, x, weight, scale, partial):
    """Parts lo .. hi - 1 of the products of x with the weight: into partial (n_blocks, O)."""
    if weight.itemsize == 4:
        depth, n_in = _rows_of_block(weight), len(weight)
        part = np.empty(weight.shape[1], np.float32)
        for block in range(lo, hi):
            total = partial[block, : part.size]
            total[:] = 0
            for start in range(block * depth, min(n_in, (block + 1) * depth), _DEPTH):
                part[:] = 0
                add_block(x, weight, start, min(n_in, start + _DEPTH), part)
                for j in range(part.size):
                    total[j] += part[j]
    elif weight.itemsize == 2:
        bfloat16_products(lo, hi, x, weight, partial[0])
    else:
        int8_products(lo, hi, x, weight, scale, partial[0])


@helper
def operand(values, weight, rounds, row):
    """row: the values as `products` takes them for this weight."""
    n = values.size
    if weight.itemsize == 1:                                      # every fourth together: linear_int8.py
        for k in range(4):
            for i in range(n // 4):
                row[k * (n // 4) + i] = values[4 * i + k]
    else:
        for i in range(n):
            row[i] = values[i]
    if rounds and weight.itemsize != 1:                           # int8 is multiplied as float32
        round_in_place(row[:n])


@helper
def total_of(partial, start, stop, bias, out):
    """out = the sum of the blocks + bias, for outputs start .. stop - 1."""
    target = out[start:stop]
    target[:] = 0
    for block in range(len(partial)):
        row = partial[block, start:stop]
        for j in range(target.size):
            target[j] += row[j]
    if bias.size:
        row = bias[start:stop]
        for j in range(target.size):
            target[j] += row[j]
