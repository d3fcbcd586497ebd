"""Linear on the CPU. Same formulas; what changes, and what it bought:

- The bias is written to `out` before the product, which is then added to it: BLAS would otherwise fill `out` with
  zeros first, so the bias costs nothing.
- dweight is a DeferredGradient: BLAS adds it straight to the parameter's gradient in the flat buffer. No array
  of the weight's size is made, zeroed or added.
- dbias is summed by all threads, in fixed blocks of rows.
"""

import numpy as np

from ops.kernels.cpu import skinny_gemm
from ops.kernels.cpu.blas_gemm import readable
from ops.kernels.cpu.gemm.product import product as gemm_product
from ops.kernels.cpu.numba_jit import ROW_BLOCKS, block_edge, is_float32, jit, split_blocks
from ops.kernels.cpu.products import gemm, kernel_for
from ops.kernels.cpu.spread import spread
from ops.linear import Linear
from tinygrad2.deferred import DeferredGradient


class LinearCPU(Linear, backend="numpy"):
    @classmethod
    def supports(cls, x, weight, bias=None):
        return x.size > 0 and is_float32(x, weight, bias) and readable(weight)

    def forward(self, x, weight, bias=None):
        x = np.asarray(x, order="C")
        self.save(x, weight)
        rows = x.reshape(-1, x.shape[-1])                         # (N, I)
        out = product(rows, weight, bias, self.precision)         # (N, O)
        return out.reshape(*x.shape[:-1], weight.shape[1])

    def backward(self, dout):
        x, weight = self.saved
        need_x, need_weight, need_bias = self.needs_grad
        drows = np.asarray(dout, order="C").reshape(-1, dout.shape[-1])
        rows = x.reshape(-1, x.shape[-1])
        return (
            product(drows, weight.T, None, self.precision).reshape(x.shape) if need_x else None,
            weight_gradient(rows, drows, self.precision) if need_weight else None,
            column_sums(drows) if need_bias else None,
        )


def product(rows, weight, bias=None, precision="highest"):
    """rows weight + bias, a new (N, O) array."""
    out = np.empty((len(rows), weight.shape[1]), np.float32)
    if kernel := kernel_for(rows, weight, precision):
        return gemm_product(rows, weight, out, bias=bias, kernel=kernel)
    if precision != "bfloat16" and skinny_gemm.fits(rows, weight):
        return skinny_gemm.product(rows, weight, bias, out)
    return gemm(rows, weight, out, precision=precision, bias=None if bias is None else np.asarray(bias, order="C"))


def weight_gradient(rows, drows, precision="highest"):
    """rowsT drows, computed when it is known where it belongs."""

    def write_to(out, accumulate):
        gemm(rows.T, drows, out, accumulate, precision=precision)

    return DeferredGradient(np, (rows.shape[1], drows.shape[1]), rows.dtype, write_to)


def column_sums(rows):
    """The sum of the rows (N, O): (O,)."""
    partial = np.zeros((ROW_BLOCKS, rows.shape[1]), np.float32)
    split_blocks(_column_sums, *rows.shape, rows, partial)
    return partial.sum(0)


@jit
def _column_sums(lo, hi, rows, partial):
    if spread(lo, hi):
        return
    for block in range(lo, hi):
        total = partial[block]
        for i in range(block_edge(len(rows), block), block_edge(len(rows), block + 1)):
            row = rows[i]
            for j in range(row.size):
                total[j] += row[j]
