"""The linear map with bfloat16 weights on the GPU. Same formulas; what changes, and why:

- Up to 8 rows, as when a token is generated, are multiplied by the weights as they are kept (row_products.py): 2 bytes
  a weight are read, where the reference also writes and reads them as float32.
- More rows, as those of a prompt, are one product by cuBLASLt. Where activations are bfloat16 as well, the weights are
  read in place; else they are cast first.
- The bias is added in either.
"""

import numpy as np

from ops.kernels.cuda.cast import activation
from ops.kernels.cuda.elements import is_computed
from ops.kernels.cuda.factors import bias_as
from ops.kernels.cuda.products import gemm
from ops.kernels.cuda.row_products import MOST_ROWS, is_vector, rows_by_bfloat16
from ops.linear_bfloat16 import LinearBfloat16
from tinygrad2.halves import half_dtype


class LinearBfloat16CUDA(LinearBfloat16, backend="cupy"):
    saves_halves = True

    @classmethod
    def supports(cls, x, w, bias=None):
        vector = bias is None or is_vector(bias, len(w))
        matrix = w.dtype == np.uint16 and w.shape[1:] == x.shape[-1:] and w.flags.c_contiguous
        return is_computed(x) and x.size > 0 and w.size > 0 and matrix and vector

    def forward(self, x, w, bias=None):
        rows = activation(self, x).reshape(-1, x.shape[-1])       # (N, I)
        self.save(x, w)
        weight = w.view(half_dtype("bfloat16"))                   # (O, I)
        if len(rows) <= MOST_ROWS:
            out = rows_by_bfloat16(self.xp, rows, weight, bias)
        else:
            weight = weight.astype(rows.dtype, copy=False)
            out = gemm(rows, weight.T, bias=bias_as(bias, rows.dtype), precision=self.precision)
        return out.reshape(*x.shape[:-1], len(w))

    def backward(self, dout):
        """The reference's, in float32: the weights are not trained."""
        x, w = self.saved
        self.saved = x.astype(np.float32, copy=False), w
        return super().backward(dout.astype(np.float32, copy=False))
