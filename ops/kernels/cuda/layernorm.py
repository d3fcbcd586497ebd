"""Layernorm, alone and fused with a residual addition, on the GPU. Same formulas; what changes, and why:

- One warp per row, which keeps the row in registers: x (and delta) are read once and out is written once, where the
  reference's eight operators each read and write an array. Sums over a row are shuffles between lanes.
- backward computes xhat again from mean and rstd, adds the residual stream's gradient to dx in the same pass, and sums
  dweight and dbias per block; a second kernel adds the blocks (column_sums.py).
- In mixed precision delta, out and dout have 16 bits; x, its sum with delta, the statistics and all arithmetic float32.
"""

import numpy as np

from ops.add_layernorm import AddLayerNorm
from ops.kernels.cuda.column_sums import sum_of_partials
from ops.kernels.cuda.launch import STATIC_SHARED, launch, result_dtype, wide
from ops.layernorm import LayerNorm

_WARPS, _BLOCKS = 4, 528                                          # of a block; of backward, at most
_ROOM = STATIC_SHARED // 8                                        # channels for which one warp has the shared memory


def _fits(x, delta, weight, bias):
    if not 0 < x.size < 2**31 * x.shape[-1] or x.shape[-1] > _ROOM or x.dtype != np.float32:
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
        return gradients(self, dout, None)


class AddLayerNormCUDA(AddLayerNorm, backend="cupy"):
    saves_halves = True

    @classmethod
    def supports(cls, x, delta, weight, bias=None):
        return x.shape == delta.shape and _fits(x, delta, weight, bias)

    def forward(self, x, delta, weight, bias=None, eps=1e-5):
        return normalise(self, x, delta, weight, bias, eps)

    def backward(self, douts):
        dsum, dout = douts
        dx, dweight, dbias = gradients(self, dout, dsum)
        return dx, dx, dweight, dbias


def normalise(op, x, delta, weight, bias, eps):
    """(x + delta, its layernorm); without delta, (x, its layernorm). Saves for `gradients`."""
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


def gradients(op, dout, dresidual):
    """(dx, dweight, dbias); dresidual, if given, is added to dx."""
    xp, (x, weight, mean, rstd, has_bias) = op.xp, op.saved
    C = x.shape[-1]
    dout = xp.ascontiguousarray(dout)
    dresidual = None if dresidual is None else xp.ascontiguousarray(dresidual)
    dx, rows = xp.empty_like(x), x.size // C
    warps = max(1, min(_WARPS, STATIC_SHARED // (8 * C)))         # each has 2 rows of C floats in shared memory
    blocks = min(_BLOCKS, -(-rows // warps))
    partial = xp.empty((blocks, 2, C), np.float32)
    sizes = np.int32(rows), np.int32(C), wide(C, x, weight, dout, dresidual, dx)
    args = x, weight, mean, rstd, dout, dresidual, dx, partial, *sizes
    launch(xp, "layernorm", "layernorm_backward", dout.dtype, blocks, 32 * warps, args, shared=8 * warps * C)
    return dx, sum_of_partials(xp, partial[:, 0]), sum_of_partials(xp, partial[:, 1]) if has_bias else None
