"""The linear map with int8 weights on the GPU. Same formulas; what changes, and why:

- Up to 8 rows, as when a token is generated, are multiplied by the weights as they are kept (row_products.py): 1 byte a
  weight is read, where the reference also writes and reads them as float32.
- More rows, as those of a prompt, are one product by cuBLASLt, of weights written out in the activations' dtype.
- The bias is added in either.
"""

import numpy as np

from ops.kernels.cuda.cast import activation
from ops.kernels.cuda.elements import is_computed
from ops.kernels.cuda.factors import bias_as
from ops.kernels.cuda.products import gemm
from ops.kernels.cuda.row_products import MOST_ROWS, dequantized, is_vector, rows_by_int8
from ops.linear_int8 import LinearInt8


class LinearInt8CUDA(LinearInt8, backend="cupy"):
    saves_halves = True

    @classmethod
    def supports(cls, x, q, scale, bias=None):
        vectors = all(v is None or is_vector(v, len(q)) for v in (scale, bias))
        matrix = q.dtype == np.int8 and q.shape[1:] == x.shape[-1:] and q.flags.c_contiguous
        return is_computed(x) and x.size > 0 and q.size > 0 and matrix and vectors

    def forward(self, x, q, scale, bias=None):
        rows = activation(self, x).reshape(-1, x.shape[-1])       # (N, I)
        self.save(x, q, scale)
        if len(rows) <= MOST_ROWS:
            out = rows_by_int8(self.xp, rows, q, scale, bias)
        else:
            weight = dequantized(self.xp, q, scale, rows.dtype)   # (O, I)
            out = gemm(rows, weight.T, bias=bias_as(bias, rows.dtype), precision=self.precision)
        return out.reshape(*x.shape[:-1], len(q))

    def backward(self, dout):
        """The reference's, in float32: int8 weights are for inference."""
        x, q, scale = self.saved
        self.saved = x.astype(np.float32, copy=False), q, scale
        return super().backward(dout.astype(np.float32, copy=False))
