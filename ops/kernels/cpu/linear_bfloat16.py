"""The linear map with bfloat16 weights on the CPU. Same formulas; what changes, and what it bought:

- Few rows (a text is generated one row at a time): a weight is read once, as the two bytes it is, and widened in a
  register. The time is that of reading, half of float32's.
- Many rows (a prompt): the matrix becomes float32, for the product that is the fastest here (products.py).
"""

import numpy as np
from llvmlite import ir

from ops.kernels.cpu import skinny_gemm
from ops.kernels.cpu.bfloat16 import rounded
from ops.kernels.cpu.fast_math import bits_to_float32
from ops.kernels.cpu.gemm.emit import emitted, f32, i16, i32, vector
from ops.kernels.cpu.numba_jit import helper, is_float32, jit
from ops.kernels.cpu.products import gemm, tile_kernel
from ops.kernels.cpu.spread import spread
from ops.linear_bfloat16 import LinearBfloat16
from tinygrad2.precision import ROUNDED
from tinygrad2.system.threads import POOL

_GRAIN = 1 << 16                                                  # weights of a part, at least
_AHEAD = 2048                                                     # bytes: so far in front memory is asked for


class LinearBfloat16CPU(LinearBfloat16, backend="numpy"):
    @classmethod
    def supports(cls, x, w, bias=None):
        return x.size > 0 and w.size > 0 and is_float32(x, bias) and w.dtype == np.uint16 and w.flags.c_contiguous

    def forward(self, x, w, bias=None):
        self.save(x, w)
        rows = np.asarray(x, order="C").reshape(-1, x.shape[-1])  # (N, I)
        few, precision = len(rows) <= skinny_gemm.MOST, self.precision
        if precision == ROUNDED and (few or not tile_kernel(ROUNDED)):
            rows, precision = rounded(rows), "highest"            # w needs no rounding
        out = np.empty((len(rows), len(w)), np.float32)           # (N, O)
        if few:
            bias = np.zeros(len(w), np.float32) if bias is None else np.asarray(bias, order="C")
            POOL.split(_dots, len(w), rows, w, bias, out, grain=max(1, _GRAIN // w.shape[1]))
        else:
            gemm(rows, self._unpacked(w, x).T, out, precision=precision)
            out += 0 if bias is None else bias
        return out.reshape(*x.shape[:-1], len(w))


@jit
def _dots(lo, hi, x, w, bias, out):
    if spread(lo, hi):
        return
    for j in range(lo, hi):
        row = w[j]
        for i in range(len(x)):
            values, total = x[i], np.float32(0)
            for k in range(row.size):
                total += values[k] * bits_to_float32(np.int32(row[k]) << np.int32(16))
            out[i, j] = total + bias[j]


@emitted
def _dot(e, x, w, n, sums):
    """sums (8,): what every eighth of n numbers of x and w, a multiple of 16 of them, make as products."""
    ints, floats = vector(i32, 8), vector(f32, 8)

    def body(i, totals):
        at, new = e.add(w, e.mul(i, 32)), []
        e.prefetch(e.add(at, _AHEAD))
        for k in range(2):
            numbers = e.load(vector(i16, 8), e.add(at, 16 * k), align=2)
            wide = e.builder.shl(e.builder.zext(numbers, ints), ir.Constant(ints, [16] * 8))
            values = e.load(floats, e.add(x, e.add(e.mul(i, 64), 32 * k)))
            new.append(e.multiply_add(values, e.bitcast(wide, floats), totals[k]))
        return new

    one, two = e.loop(e.builder.udiv(n, e.number(16)), [e.zeros(floats)] * 2, body)
    e.store(e.add(one, two), sums)


@helper
def bfloat16_products(lo, hi, x, w, out):
    """out[j] = the product of x (I,) and row j of w, for rows lo .. hi - 1; I must be a multiple of 16."""
    n, sums = w.shape[1], np.empty(8, np.float32)
    for j in range(lo, hi):
        _dot(x.ctypes.data, w.ctypes.data + 2 * n * j, n, sums.ctypes.data)
        total = np.float32(0)
        for lane in range(8):
            total += sums[lane]
        out[j] = total
