"""Softmax on the CPU. Same formulas; what changes, and what it bought:

- A row stays in the cache for its three passes (largest, e and sum, division) instead of making four arrays.
"""

import numpy as np

from ops.kernels.cpu.fast_math import exp32, max32
from ops.kernels.cpu.numba_jit import is_float32, jit, split_rows
from ops.kernels.cpu.spread import spread
from ops.softmax import Softmax

_ZERO, _NOTHING = np.float32(0), np.float32(-69)                  # e^-69 = 1e-30


class SoftmaxCPU(Softmax, backend="numpy"):
    @classmethod
    def supports(cls, x):
        return x.size > 0 and x.ndim > 0 and is_float32(x)

    def forward(self, x, axis=-1):
        x = np.asarray(np.moveaxis(x, axis, -1), order="C")       # rows along memory
        p, n = np.empty_like(x), x.shape[-1]
        split_rows(_forward, x.size // n, n, x.reshape(-1, n), p.reshape(-1, n))
        p = np.moveaxis(p, -1, axis)
        self.save(p, axis)
        return p

    def backward(self, dout):
        p, axis = self.saved
        shape = np.moveaxis(p, axis, -1).shape
        rows = [np.asarray(np.moveaxis(a, axis, -1), order="C").reshape(-1, shape[-1]) for a in (p, dout)]
        dx = np.empty_like(rows[0])
        split_rows(_backward, *dx.shape, *rows, dx)
        return (np.moveaxis(dx.reshape(shape), -1, axis),)


@jit
def _forward(lo, hi, x, p):
    if spread(lo, hi):
        return
    for n in range(lo, hi):
        row, target = x[n], p[n]
        largest = row[0]
        for j in range(row.size):
            largest = max32(largest, row[j])
        total = np.float32(0)
        for j in range(row.size):
            below = row[j] - largest
            e = _ZERO if below < _NOTHING else exp32(below)       # a score of -inf gets exactly 0
            target[j] = e
            total += e
        factor = np.float32(1) / total
        for j in range(target.size):
            target[j] *= factor


@jit
def _backward(lo, hi, p, dout, dx):
    if spread(lo, hi):
        return
    for n in range(lo, hi):
        row, drow, target = p[n], dout[n], dx[n]
        average = np.float32(0)
        for j in range(row.size):
            average += row[j] * drow[j]
        for j in range(row.size):
            target[j] = row[j] * (drow[j] - average)
