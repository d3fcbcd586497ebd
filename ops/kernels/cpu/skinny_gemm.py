"""Matrix products of one to eight rows: texts that are generated, one token each.

Here the time is that of reading the weight once. BLAS first copies it into its own order, which pays for many
rows only; these loops read it where it is, two to three times as fast (docs/kernels.md):

- one row and a weight (I, O): single_row.py.
- two rows and more: in strips of columns, whose sums stay in the cache; eight of its rows are multiplied
  at a time, for two rows of x together, so that a weight loaded is used twice.
- weight (I, O) as the transpose of an (O, I) array, as the head has the embedding: each output is a dot product.

Sums are taken in an order that does not depend on the number of threads, 128 terms at a time: rounding errors grow
with the length of what is summed, and so they stay below BLAS's.
"""

import numpy as np

from ops.kernels.cpu import single_row
from ops.kernels.cpu.numba_jit import helper, jit
from ops.kernels.cpu.spread import spread
from tinygrad2.system.threads import POOL

MOST = 8
_STRIP = 384                                                      # columns: what is added to stays in the cache
_DEPTH = 128                                                      # rows that are summed apart; see above
_GRAIN = 1 << 16                                                  # weights of a part, at least


def fits(rows, weight):
    """Is it this module's work: few rows, and a contiguous weight?"""
    return 1 <= len(rows) <= MOST and (weight.flags.c_contiguous or weight.T.flags.c_contiguous)


def product(rows, weight, bias, out):
    """out = rows weight + bias (or None): float32 (N, I), (I, O), (O,), (N, O). Returns out."""
    n_in, n_out = weight.shape
    bias = np.zeros(n_out, np.float32) if bias is None else np.asarray(bias, order="C")
    if len(rows) == 1 and weight.flags.c_contiguous:
        single_row.product(rows, weight, bias, out)
    elif not weight.T.flags.c_contiguous:
        strips = -(-n_out // _STRIP)
        POOL.split(_strips, strips, rows, weight, bias, out, grain=-(-_GRAIN // (_STRIP * n_in)))
    else:
        POOL.split(_dots, n_out, rows, weight.T, bias, out, grain=-(-_GRAIN // n_in))
    return out


@jit
def _strips(lo, hi, x, weight, bias, out):
    if spread(lo, hi):
        return
    n_in, n_out = weight.shape
    for strip in range(lo, hi):
        a, b = strip * _STRIP, min(n_out, (strip + 1) * _STRIP)
        for i in range(len(x)):
            out[i, a:b] = bias[a:b]
        partial = np.empty((len(x), b - a), np.float32)
        for start in range(0, n_in, _DEPTH):
            partial[:] = 0
            _add_rows(x, weight, start, min(n_in, start + _DEPTH), a, b, partial)
            for i in range(len(x)):
                total, part = out[i, a:b], partial[i]
                for j in range(part.size):
                    total[j] += part[j]


@helper
def _add_rows(x, weight, start, stop, a, b, out):
    """Add what rows start .. stop - 1 of the weight make of x, in columns a .. b - 1."""
    full = stop - (stop - start) % 8
    for k in range(start, full, 8):
        for i in range(0, len(x) - 1, 2):
            _add_to_two(x[i, k:], x[i + 1, k:], weight[k:], a, b, out[i], out[i + 1])
        if len(x) % 2:
            _add_to_one(x[len(x) - 1, k:], weight[k:], a, b, out[len(x) - 1])
    for k in range(full, stop):
        row = weight[k, a:b]
        for i in range(len(x)):
            total, factor = out[i], x[i, k]
            for j in range(row.size):
                total[j] += factor * row[j]


@helper
def _add_to_two(x, y, w, lo, hi, out_x, out_y):
    """Add what the first eight rows of w make of x and of y, in columns lo .. hi - 1."""
    x0, x1, x2, x3 = x[0], x[1], x[2], x[3]
    x4, x5, x6, x7 = x[4], x[5], x[6], x[7]
    y0, y1, y2, y3 = y[0], y[1], y[2], y[3]
    y4, y5, y6, y7 = y[4], y[5], y[6], y[7]
    w0, w1 = w[0, lo:hi], w[1, lo:hi]
    w2, w3 = w[2, lo:hi], w[3, lo:hi]
    w4, w5 = w[4, lo:hi], w[5, lo:hi]
    w6, w7 = w[6, lo:hi], w[7, lo:hi]
    for j in range(out_x.size):
        a, b = w0[j], w1[j]
        c, d = w2[j], w3[j]
        e, f = w4[j], w5[j]
        g, h = w6[j], w7[j]
        out_x[j] += (
            x0 * a + x1 * b + x2 * c + x3 * d
            + x4 * e + x5 * f + x6 * g + x7 * h
        )  # fmt: skip
        out_y[j] += (
            y0 * a + y1 * b + y2 * c + y3 * d
            + y4 * e + y5 * f + y6 * g + y7 * h
        )  # fmt: skip


@helper
def _add_to_one(x, w, lo, hi, out):
    for start in (0, 4):
        x0, x1 = x[start], x[start + 1]
        x2, x3 = x[start + 2], x[start + 3]
        w0, w1 = w[start, lo:hi], w[start + 1, lo:hi]
        w2, w3 = w[start + 2, lo:hi], w[start + 3, lo:hi]
        for j in range(out.size):
            out[j] += x0 * w0[j] + x1 * w1[j] + x2 * w2[j] + x3 * w3[j]


@jit
def _dots(lo, hi, x, rows, bias, out):
    if spread(lo, hi):
        return
    for j in range(lo, hi):
        row = rows[j]
        for i in range(len(x)):
            xi = x[i]
            total = np.float32(0)
            for k in range(row.size):
                total += xi[k] * row[k]
            out[i, j] = total + bias[j]
