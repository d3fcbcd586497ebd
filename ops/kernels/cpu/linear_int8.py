"""The int8 linear map on the CPU. Same formulas; what changes, and what it bought:

- Few rows (a text is generated one row at a time): a weight is read once, as the byte it is, and widened in a register.
  The reference makes a float32 copy of the matrix first. The time is that of reading, a quarter of float32's.
- Four neighbours are widened as what they are in memory, an integer of 32 bits: by shifts, which take fewer steps than
  one conversion each. So every fourth number of x must be together, and x is sorted once for all rows of q.
- Memory that will be needed soon is asked for: without it half of the time went by in waiting for it.
- Many rows (a prompt): the reference, since there the products count.
"""

import numpy as np
from llvmlite import ir

from ops.kernels.cpu.gemm.emit import emitted, f32, i32, vector
from ops.kernels.cpu.numba_jit import helper, is_float32, jit
from ops.kernels.cpu.spread import spread
from ops.linear_int8 import LinearInt8
from tinygrad2.system.threads import POOL

_MOST_ROWS = 8
_GRAIN = 1 << 16                                                  # weights of a part, at least
_STEP = 32                                                        # weights of one vector: I must be a multiple of it
_AHEAD = 4096                                                     # bytes: so far in front memory is asked for


class LinearInt8CPU(LinearInt8, backend="numpy"):
    @classmethod
    def supports(cls, x, q, scale, bias=None):
        few, n_in = x.size <= _MOST_ROWS * x.shape[-1], x.shape[-1]
        fits = q.dtype == np.int8 and q.flags.c_contiguous and n_in % _STEP == 0
        return few and x.size > 0 and is_float32(x, scale, bias) and fits

    def forward(self, x, q, scale, bias=None):
        self.save(x, q, scale)
        quarters = x.reshape(-1, x.shape[-1] // 4, 4).swapaxes(1, 2)                   # (N, 4, I / 4)
        out = np.empty((len(quarters), len(q)), np.float32)
        bias = np.zeros_like(scale) if bias is None else bias
        grain = max(1, _GRAIN // x.shape[-1])
        POOL.split(_int8, len(q), np.ascontiguousarray(quarters), q, scale, bias, out, grain=grain)
        return out.reshape(*x.shape[:-1], len(q))


def _products_of(rows):
    """An intrinsic: products of so many rows of x with one row of n weights. sums (rows, 8): what every eighth group
    of four weights makes of each."""

    @emitted
    def add_products(e, quarters, weights, n, sums):
        b, ints, floats = e.builder, vector(i32, 8), vector(f32, 8)

        def body(i, totals):
            at, new = e.mul(i, _STEP), []
            e.prefetch(e.add(e.add(weights, at), _AHEAD))
            four = e.load(ints, e.add(weights, at), align=1)      # byte k of a lane is weight k of its group
            for k in range(4):
                top = b.shl(four, ir.Constant(ints, [24 - 8 * k] * 8))
                weight = b.sitofp(b.ashr(top, ir.Constant(ints, [24] * 8)), floats)
                for row in range(rows):
                    x = e.load(floats, e.add(e.add(quarters, e.mul(n, 4 * row + k)), at))
                    new.append(e.multiply_add(x, weight, totals[len(new)]))
            return new

        totals = e.loop(b.udiv(n, e.number(_STEP)), [e.zeros(floats)] * (4 * rows), body)
        for row in range(rows):
            one, two, three, four = totals[row::rows]
            e.store(e.add(e.add(one, two), e.add(three, four)), e.add(sums, 32 * row))

    return add_products


_one_row, _two_rows = _products_of(1), _products_of(2)


@jit
def _int8(lo, hi, quarters, q, scale, bias, out):
    if spread(lo, hi):
        return
    n, sums = q.shape[1], np.empty((len(quarters), 8), np.float32)
    for j in range(lo, hi):
        weights = q.ctypes.data + j * n
        for i in range(0, len(quarters), 2):
            if i + 1 < len(quarters):
                _two_rows(quarters[i].ctypes.data, weights, n, sums[i].ctypes.data)
            else:
                _one_row(quarters[i].ctypes.data, weights, n, sums[i].ctypes.data)
        for i in range(len(quarters)):
            total = np.float32(0)
            for lane in range(8):
                total += sums[i, lane]
            out[i, j] = scale[j] * total + bias[j]


@helper
def int8_products(lo, hi, quarters, q, scale, out):
    """out[j] = scale[j] times the product of x and row j of q, for rows lo .. hi - 1; x (I,) sorted as above."""
    n, sums = q.shape[1], np.empty(8, np.float32)
    for j in range(lo, hi):
        _one_row(quarters.ctypes.data, q.ctypes.data + j * n, n, sums.ctypes.data)
        total = np.float32(0)
        for lane in range(8):
            total += sums[lane]
        out[j] = scale[j] * total
