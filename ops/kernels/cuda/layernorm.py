"""Layernorm, alone and fused with a residual addition, on the GPU. Same formulas; what changes, and why:

- One warp per row, which keeps the row in registers: x (and delta) are read once and out is written once, where the
  reference's eight operators each read and write an array. Sums over a row are shuffles between lanes.
- backward computes xhat again from mean and rstd, adds the residual stream's gradient to dx in the same pass, and sums
  dweight and dbias per block; a second kernel adds the blocks (column_sums.py). Alone, layernorm's dx is a
  DeferredGradient: x goes on as the residual stream, whose gradient is there already when this one comes.
- In mixed precision delta, out and dout have 16 bits; x, its sum with delta, the statistics and all arithmetic float32.
  The gradient of delta, dx in 16 bits, is written in the same pass.
"""

import numpy as np

from ops.add_layernorm import AddLayerNorm
from ops.kernels.cuda.column_sums import sum_of_partials
from ops.kernels.cuda.launch import STATIC_SHARED, launch, result_dtype, wide
from ops.layernorm import LayerNorm
from tinygrad2.deferred import DeferredGradient

_WARPS, _BLOCKS = 4, 528                                          # of a block; of backward, at most
_ROOM = STATIC_SHARED // 8                                        # channels for which one warp has the shared memory


def _fits(x, delta, weight, bias):
    if not 0 < x.size < 2**30 * x.shape[-1] or x.shape[-1] > _ROOM or x.dtype != np.float32:
        return False
    return all(v is None or (v.dtype == np.float32 and v.shape == x.shape[-1:]) for v in (weight, bias))


class LayerNormCUDA(LayerNorm, backend="cupy"):
    saves_halves = True

    @classmethod
    def supports(cls, x, weight, bias=None):
        return _fits(x, None, weight, bias)

    def forward(self, x, weight, bias=None, eps=1e-5):
        _, out = normalise(self, x, None, weight, bias, eps)
        return out

    def backward(self, dout):
        kernel = _Backward(self, dout)
        return kernel.deferred_dx(), kernel.dweight(), kernel.dbias()


class AddLayerNormCUDA(AddLayerNorm, backend="cupy"):
    saves_halves = True

    @classmethod
    def supports(cls, x, delta, weight, bias=None):
        return x.shape == delta.shape and _fits(x, delta, weight, bias)

    def forward(self, x, delta, weight, bias=None, eps=1e-5):
        self.delta_dtype = delta.dtype
        return normalise(self, x, delta, weight, bias, eps)

    def backward(self, douts):
        dsum, dout = douts
        kernel = _Backward(self, dout)
        ddelta = None if self.delta_dtype == np.float32 else self.xp.empty(dout.shape, dout.dtype)
        dx = kernel.dx(dsum, ddelta)
        return dx, dx if ddelta is None else ddelta, kernel.dweight(), kernel.dbias()


def normalise(op, x, delta, weight, bias, eps):
    """(x + delta, its layernorm); without delta, (x, its layernorm). Saves for _Backward."""
    xp, C = op.xp, x.shape[-1]
    x, weight = xp.ascontiguousarray(x), xp.ascontiguousarray(weight)
    bias = None if bias is None else xp.ascontiguousarray(bias)
    dtype = result_dtype(op)
    s, out = x, xp.empty(x.shape, dtype)
    if delta is not None:
        delta, s = xp.ascontiguousarray(delta).astype(dtype, copy=False), xp.empty_like(x)
    mean, rstd = (xp.empty((*x.shape[:-1], 1), np.float32) for _ in range(2))
    rows = x.size // C
    sizes = np.int32(rows), np.int32(C), np.float32(eps), wide(C, x, delta, weight, bias, s, out)
    args = x, delta, weight, bias, None if delta is None else s, out, mean, rstd, *sizes
    launch(xp, "layernorm", "layernorm_forward", dtype, -(-rows // _WARPS), 32 * _WARPS, args)
    op.save(s, weight, mean, rstd, bias is not None)
    return s, out


class _Backward:
    """The kernel of backward, which gives all three gradients: dx, and its partial sums for dweight and dbias."""

    def __init__(self, op, dout):
        self.xp, self.dout, self.partial = op.xp, op.xp.ascontiguousarray(dout), None
        self.x, self.weight, self.mean, self.rstd, self.has_bias = op.saved

    def dx(self, dresidual=None, ddelta=None, out=None):
        """dx + dresidual, where that is given: a new array, or `out`. Also written to ddelta, in the dtype of dout."""
        xp, x, dout, C = self.xp, self.x, self.dout, self.x.shape[-1]
        dresidual = None if dresidual is None else xp.ascontiguousarray(dresidual)
        dx, rows = xp.empty_like(x) if out is None else out, x.size // C
        warps = max(1, min(_WARPS, STATIC_SHARED // (8 * C)))     # each has 2 rows of C floats in shared memory
        blocks = min(_BLOCKS, -(-rows // warps))
        partial = xp.empty((blocks, 2, C), np.float32)
        arrays = x, self.weight, self.mean, self.rstd, dout, dresidual, dx, ddelta, partial
        sizes = np.int32(rows), np.int32(C), wide(C, x, self.weight, dout, dresidual, dx, ddelta)
        launch(xp, "layernorm", "layernorm_backward", dout.dtype, blocks, 32 * warps, (*arrays, *sizes), 8 * warps * C)
        self.partial = partial
        return dx

    def deferred_dx(self):
        def write_to(out, accumulate):
            dx = self.dx(out if accumulate else None, out=out if out.flags.c_contiguous else None)
            if dx is not out:
                out[...] = dx

        return DeferredGradient(self.xp, self.x.shape, self.x.dtype, write_to, plus=self.dx)

    def dweight(self):
        return self._sum(0)

    def dbias(self):
        return self._sum(1) if self.has_bias else None

    def _sum(self, which):
        def write_to(out, accumulate):
            if self.partial is None:                              # nobody has wanted dx
                self.dx()
            sum_of_partials(self.xp, self.partial[:, which]).write_to(out, accumulate)

        return DeferredGradient(self.xp, self.x.shape[-1:], np.dtype(np.float32), write_to)
