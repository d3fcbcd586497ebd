"""Layernorm, alone and fused with a residual addition, on the CPU. Same formulas; what changes, and what it bought:

- A row is read once into the cache, and mean, variance and out are computed there; the reference makes eight trips to
  memory.
- backward computes xhat again from mean and rstd and sums dweight and dbias in the same pass, per block of rows.
- With the residual: x + delta, its row statistics and its layernorm in one pass over the row; in backward the gradient
  that comes down the residual stream is added in the pass that computes dx.
"""

import math

import numpy as np

from ops.add_layernorm import AddLayerNorm
from ops.kernels.cpu.numba_jit import ROW_BLOCKS, block_edge, helper, is_float32, jit, split_blocks, split_rows
from ops.kernels.cpu.spread import spread
from ops.layernorm import LayerNorm


class LayerNormCPU(LayerNorm, backend="numpy"):
    @classmethod
    def supports(cls, x, weight, bias=None):
        return x.size > 0 and is_float32(x, weight, bias)

    def forward(self, x, weight, bias=None, eps=1e-5):
        x = np.asarray(x, order="C")
        out, mean, rstd = normalise(x, None, x, weight, bias, eps)
        self.save(x, weight, mean, rstd)
        return out

    def backward(self, dout):
        x, weight, mean, rstd = self.saved
        return gradients(x, weight, mean, rstd, dout, None)


class AddLayerNormCPU(AddLayerNorm, backend="numpy"):
    @classmethod
    def supports(cls, x, delta, weight, bias=None):
        return x.size > 0 and is_float32(x, delta, weight, bias) and x.shape == delta.shape

    def forward(self, x, delta, weight, bias=None, eps=1e-5):
        x = np.asarray(x, order="C")
        s = np.empty_like(x)
        out, mean, rstd = normalise(x, np.asarray(delta, order="C"), s, weight, bias, eps)
        self.save(s, weight, mean, rstd)
        return s, out

    def backward(self, douts):
        ds, dout = douts
        dx, dweight, dbias = gradients(*self.saved, dout, np.asarray(ds, order="C"))
        return dx, dx, dweight, dbias


def normalise(x, delta, s, weight, bias, eps):
    """(out, mean, rstd) of s = x + delta, which is written to `s`; delta may be None, and then s is x."""
    shape = (-1, x.shape[-1])
    out = np.empty_like(x)
    mean = np.empty((*x.shape[:-1], 1), np.float32)
    rstd = np.empty_like(mean)
    bias = np.empty(0, np.float32) if bias is None else bias
    arrays = [a.reshape(shape) for a in (x, x if delta is None else delta, s, out)]
    split_rows(_forward, *arrays[0].shape, *arrays, delta is not None, np.asarray(weight, order="C"),
               np.asarray(bias, order="C"), np.float32(eps), mean.reshape(-1), rstd.reshape(-1))
    return out, mean, rstd


def gradients(x, weight, mean, rstd, dout, dresidual):
    """(dx, dweight, dbias); dresidual, if given, is added to dx."""
    shape = (-1, x.shape[-1])
    dx = np.empty_like(x, order="C")
    arrays = [np.asarray(a, order="C").reshape(shape) for a in (x, dout, dx if dresidual is None else dresidual)]
    partial = np.zeros((2, ROW_BLOCKS, x.shape[-1]), np.float32)
    split_blocks(_backward, *arrays[0].shape, *arrays, dx.reshape(shape), dresidual is not None,
                 np.asarray(weight, order="C"), mean.reshape(-1), rstd.reshape(-1), partial)
    return dx, partial[0].sum(0), partial[1].sum(0)


@jit
def _forward(lo, hi, x, delta, s, out, add, weight, bias, eps, mean, rstd):
    if spread(lo, hi):
        return
    for n in range(lo, hi):
        row, target = x[n], out[n]
        if add:
            first, second, row = x[n], delta[n], s[n]
            for j in range(row.size):
                row[j] = first[j] + second[j]
        mean[n], rstd[n] = normalise_row(row, weight, bias, eps, target)


@helper
def normalise_row(row, weight, bias, eps, out):
    """out = the layernorm of one row, all of them (C,); bias may be empty. Returns (mean, rstd)."""
    C, total = np.float32(row.size), np.float32(0)
    for j in range(row.size):
        total += row[j]
    mean, total = total / C, np.float32(0)
    for j in range(row.size):
        total += (row[j] - mean) * (row[j] - mean)
    rstd = np.float32(1) / np.float32(math.sqrt(total / C + eps))
    if bias.size:
        for j in range(row.size):
            out[j] = (row[j] - mean) * rstd * weight[j] + bias[j]
    else:
        for j in range(row.size):
            out[j] = (row[j] - mean) * rstd * weight[j]
    return mean, rstd


@jit
def _backward(lo, hi, x, dout, dresidual, dx, add, weight, mean, rstd, partial):
    if spread(lo, hi):
        return
    C = np.float32(weight.size)
    for block in range(lo, hi):
        dweight, dbias = partial[0, block], partial[1, block]
        for n in range(block_edge(len(x), block), block_edge(len(x), block + 1)):
            row, drow, target, m, r = x[n], dout[n], dx[n], mean[n], rstd[n]
            sum_g = sum_gx = np.float32(0)
            for j in range(row.size):
                g, xhat = drow[j] * weight[j], (row[j] - m) * r
                sum_g += g
                sum_gx += g * xhat
            avg_g, avg_gx = sum_g / C, sum_gx / C
            for j in range(row.size):
                xhat = (row[j] - m) * r
                target[j] = r * (drow[j] * weight[j] - avg_g - xhat * avg_gx)
                dweight[j] += drow[j] * xhat
                dbias[j] += drow[j]
            if add:
                extra = dresidual[n]
                for j in range(row.size):
                    target[j] += extra[j]
