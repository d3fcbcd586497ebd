"""Products of few rows and a matrix of small numbers, int8 or bfloat16, on the GPU: what generates a token.

- The matrix is read once, as it is kept, 16 bytes a lane: 1 or 2 bytes a weight, where a float32 copy of it would be
  written and read with 8 more. That is nearly all there is to read.
- A warp sums a row of the matrix for all rows of x (up to 8), in float32, and adds scale and bias before it writes.
"""

import numpy as np

from ops.kernels.cuda.launch import launch, wide

MOST_ROWS = 8
_WARPS = 4                                                        # of a block


def is_vector(v, length):
    """Is this what the kernels take as scale or bias: contiguous (length,), float32?"""
    return v.dtype == np.float32 and v.shape == (length,) and v.flags.c_contiguous


def rows_by_int8(xp, x, q, scale, bias):
    """scale x qT + bias: x (N, I) of at most MOST_ROWS rows, q (O, I) int8, scale (O,) and bias (O,), or None, float32;
    all contiguous. A new array (N, O) of x's dtype."""
    return _rows_by(xp, "rows_by_int8", x, q, (scale, bias), 16)


def rows_by_bfloat16(xp, x, w, bias):
    """x wT + bias, for w (O, I) bfloat16; the rest as above."""
    return _rows_by(xp, "rows_by_bfloat16", x, w, (bias,), 8)


def _rows_by(xp, name, x, w, vectors, part):
    (N, inputs), outputs = x.shape, len(w)
    out = xp.empty((N, outputs), x.dtype)
    sizes = np.int32(N), np.int32(inputs), np.int32(outputs), _by_parts(inputs, part, x, w)
    launch(xp, "row_products", name, x.dtype, -(-outputs // _WARPS), 32 * _WARPS, (x, w, *vectors, out, *sizes))
    return out


def dequantized(xp, q, scale, dtype):
    """scale q, (O, I) of this dtype, for q (O, I) int8 and scale (O,) float32."""
    (outputs, inputs), out = q.shape, xp.empty(q.shape, dtype)
    args = q, scale, out, np.int32(inputs), _by_parts(inputs, 16, q, out)
    launch(xp, "row_products", "dequantize", dtype, outputs, 256, args)
    return out


def _by_parts(length, part, *arrays):
    """Can rows of this length be read in parts of so many numbers, by 16 bytes at a time?"""
    return np.int32(length % part == 0 and wide(length, *arrays))
