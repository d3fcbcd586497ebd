"""The MLP on the CPU. Same formulas; what changes, and what it bought:

- Products as in linear.py: biases are written before them, weight gradients straight to where they belong.
- One pass over h in backward computes g, dh and the sums for dbias1: g takes the memory of h, dh that of dg, and both
  are warm in the cache when they are read again.
- g in forward and dg live in a Lease: the same memory for all layers and steps.
"""

import numpy as np

from ops.kernels.cpu.blas_gemm import readable
from ops.kernels.cpu.gelu import gelu_row, gelu_row_backward
from ops.kernels.cpu.linear import column_sums, product, weight_gradient
from ops.kernels.cpu.numba_jit import ROW_BLOCKS, block_edge, is_float32, jit, split_blocks, split_rows
from ops.kernels.cpu.products import gemm
from ops.kernels.cpu.spread import spread
from ops.kernels.cpu.workspace import Lease
from ops.mlp import MLP
from tinygrad2.deferred import DeferredGradient


class MLPCPU(MLP, backend="numpy"):
    @classmethod
    def supports(cls, x, weight1, bias1, weight2, bias2):
        return x.size > 0 and is_float32(x, weight1, bias1, weight2, bias2) and readable(weight1, weight2)

    def forward(self, x, weight1, bias1, weight2, bias2, exact=False):
        x = np.asarray(x, order="C")
        h = product(x.reshape(-1, x.shape[-1]), weight1, bias1, self.precision)        # (N, H)
        g = Lease(*h.shape)
        split_rows(_gelu, *h.shape, h, g.array, exact)
        self.save(x, h, weight1, weight2, exact)
        return product(g.array, weight2, bias2, self.precision).reshape(*x.shape[:-1], -1)

    def backward(self, dout):
        x, h, weight1, weight2, exact = self.saved
        need_x, _, need_bias1, _, need_bias2 = self.needs_grad
        rows = x.reshape(-1, x.shape[-1])
        dout = np.asarray(dout, order="C").reshape(len(rows), -1)
        lease = Lease(*h.shape)
        dg = gemm(dout, weight2.T, lease.array, precision=self.precision)              # (N, H)
        partial = np.zeros((ROW_BLOCKS, h.shape[1]), np.float32)
        split_blocks(_gelu_backward, *h.shape, h, dg, partial, exact)
        g, dh = h, dg                                             # what their memory holds from here on
        write_to = weight_gradient(rows, dh, self.precision).write_to
        dweight1 = DeferredGradient(np, weight1.shape, h.dtype, _holding(lease, write_to))
        dx = product(dh, weight1.T, None, self.precision).reshape(x.shape) if need_x else None
        dbias1 = partial.sum(0) if need_bias1 else None
        dbias2 = column_sums(dout) if need_bias2 else None
        return dx, dweight1, dbias1, weight_gradient(g, dout, self.precision), dbias2


def _holding(lease, write_to):
    """`write_to`, with a reference to the lease whose memory it reads."""
    return lambda out, accumulate: (write_to(out, accumulate), lease)


@jit
def _gelu(lo, hi, h, g, exact):
    if spread(lo, hi):
        return
    gelu_row(h[lo:hi].reshape(-1), g[lo:hi].reshape(-1), exact)


@jit
def _gelu_backward(lo, hi, h, dg, partial, exact):
    if spread(lo, hi):
        return
    for block in range(lo, hi):
        total = partial[block]
        for i in range(block_edge(len(h), block), block_edge(len(h), block + 1)):
            row, drow = h[i], dg[i]
            gelu_row_backward(row, drow, exact)
            for j in range(drow.size):
                total[j] += drow[j]
