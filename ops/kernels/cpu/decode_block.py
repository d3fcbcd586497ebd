"""A transformer block for one new token of one text, in one call (models/decode_block.py).

    x = x + attn_out(attention(attn_in(norm_1(x))))           x = x + mlp_out(gelu(mlp_in(norm_2(x))))

The ops of a block compute little for one row: between them Python took longer than they did for int8 weights, and a
third of the time of bfloat16 ones. Here one call does them all, in six steps that the threads share; what takes a
microsecond is done between the steps by the calling thread alone. Weights are read where they are, once:

    float32 (I, O)    blocks of rows, with sums of their own (single_row.py)
    uint16  (O, I)    bfloat16: dot products
    int8    (O, I)    dot products, times the row's scale (linear_int8.py)

The sums do not depend on the number of threads.
"""

import math

import numpy as np

from ops.kernels.cpu.bfloat16 import round_in_place
from ops.kernels.cpu.gelu import gelu_row
from ops.kernels.cpu.kernel_address import call, enclosing_kernel
from ops.kernels.cpu.layernorm import normalise_row
from ops.kernels.cpu.numba_jit import helper, is_float32, jit
from ops.kernels.cpu.row_products import BLOCKS, n_blocks, n_parts, operand, products, total_of
from ops.kernels.cpu.single_query import one_query
from ops.kernels.cpu.spread import lead
from tinygrad2.dispatch import register_kernel
from tinygrad2.system.threads import POOL

_ATTN_IN, _HEADS, _ATTN_OUT, _MLP_IN, _GELU, _MLP_OUT, _STEPS = range(7)
_STRIP = 64                                                       # outputs of the MLP's first half in a part
_UNIT = 32                                                        # C and H must be multiples of it


def supports(x, norms, linears, k, v, position, exact, rounds):
    """Can this kernel take the weights?"""
    C, H = x.size, linears[2].outputs
    kinds = {(part.weight.dtype, part.weight.flags.c_contiguous) for part in linears}
    float32 = is_float32(x, k, v, *(a for norm in norms for a in norm[:2]), *(part.bias for part in linears))
    if rounds and x.dtype == linears[0].weight.dtype:             # float32 weights would have to be rounded each time
        return False
    return len(kinds) == 1 and kinds.pop()[1] and float32 and C % _UNIT == 0 and H % _UNIT == 0


@register_kernel("decode_block", "numpy", supports)
def decode_block(x, norms, linears, k, v, position, exact, rounds):
    """x (1, 1, C) after the block, a new array.

    norms     (weight (C,), bias (C,) or None, epsilon) of the two layernorms
    linears   the four linear maps, each with weight, scale, bias (O,) or None, and outputs O
    k, v      keys and values of all tokens so far, (1, nh, size, hs), which those of this token join at `position`
    exact     GELU with erf instead of tanh
    rounds    operands of products, and q, k, v, are rounded to bfloat16 (tinygrad2/mixed_precision.py)
    """
    out = x.copy()
    row, H = out.reshape(-1), linears[2].outputs
    work = np.empty((BLOCKS + 3, max(3 * row.size, H)), np.float32)
    step = np.full(1, -1)
    flat = [array for norm in norms for array in (norm[0], _or_empty(norm[1]), np.float32(norm[2]))]
    flat += [array for part in linears for array in (part.weight, _or_empty(part.scale), _or_empty(part.bias))]
    POOL.split(_block, POOL.threads or 1, step, row, work, H, *flat, k, v, position, exact, rounds)
    return out


_EMPTY = np.empty(0, np.float32)


def _or_empty(array):
    return _EMPTY if array is None else array


@jit
def _block(lo, hi, step, x, work, H, w1, b1, eps1, w2, b2, eps2, attn_in, scale_in, bias_in,
           attn_out, scale_out, bias_out, mlp_in, scale_mlp, bias_mlp, mlp_out, scale_end, bias_end,
           k, v, position, exact, rounds):  # fmt: skip
    """Called by Python it begins at step -1 and leads the others through all steps; a step is a call for some of its
    parts."""
    C, partial, row, hidden, heads = x.size, work[3:], work[0], work[1], work[2]
    if step[0] == _ATTN_IN:
        products(lo, hi, row[:C], attn_in, scale_in, partial)
    elif step[0] == _HEADS:
        for head in range(lo, hi):
            _head(head, C, partial[: n_blocks(attn_in)], bias_in, k, v, position, rounds, heads)
    elif step[0] == _ATTN_OUT:
        products(lo, hi, row[:C], attn_out, scale_out, partial)
    elif step[0] == _MLP_IN:
        products(lo, hi, row[:C], mlp_in, scale_mlp, partial)
    elif step[0] == _GELU:
        start, stop = lo * _STRIP, min(H, hi * _STRIP)
        total_of(partial[: n_blocks(mlp_in)], start, stop, bias_mlp, hidden)
        gelu_row(hidden[start:stop], hidden[start:stop], exact)
    elif step[0] == _MLP_OUT:
        products(lo, hi, row[:H], mlp_out, scale_end, partial)
    else:
        function, arguments = enclosing_kernel()
        for now in range(_STEPS):
            if now == _ATTN_IN:
                normalise_row(x, w1, b1, eps1, hidden)
                operand(hidden[:C], attn_in, rounds, row)
                parts = n_parts(attn_in)
            elif now == _HEADS:
                parts = k.shape[1]
            elif now == _ATTN_OUT:
                operand(heads[:C], attn_out, rounds, row)
                parts = n_parts(attn_out)
            elif now == _MLP_IN:
                _add(partial[: n_blocks(attn_out)], bias_out, hidden, x)
                normalise_row(x, w2, b2, eps2, hidden)
                operand(hidden[:C], mlp_in, rounds, row)
                parts = n_parts(mlp_in)
            elif now == _GELU:
                parts = -(-H // _STRIP)
            else:
                operand(hidden[:H], mlp_out, rounds, row)
                parts = n_parts(mlp_out)
            step[0] = now
            if lo < 0:
                lead(-lo, parts, function, arguments)
            else:                                                 # there is one thread
                call(function, arguments, 0, parts)
        _add(partial[: n_blocks(mlp_out)], bias_end, hidden, x)


@helper
def _add(partial, bias, hidden, x):
    """x += the sum of the blocks + bias."""
    total_of(partial, 0, x.size, bias, hidden)
    for i in range(x.size):
        x[i] += hidden[i]


@helper
def _head(head, C, partial, bias, k, v, position, rounds, heads):
    """One head: its q, k and v from the products, and its attention to all tokens so far: into heads (C,)."""
    hs = k.shape[3]
    query, part, scores = np.empty(hs, np.float32), np.empty(hs, np.float32), np.empty(position + 1, np.float32)
    packed = np.empty(3 * C, np.float32)
    for i in range(3):
        start = i * C + head * hs
        total_of(partial, start, start + hs, bias, packed)
        target = query if i == 0 else k[0, head, position] if i == 1 else v[0, head, position]
        for j in range(hs):
            target[j] = packed[start + j]
        if rounds:
            round_in_place(target)
    scale = np.float32(1 / math.sqrt(hs))
    for j in range(hs):
        query[j] *= scale
    one_query(query, k, v, 0, head, scores, part, heads[head * hs : (head + 1) * hs])
