"""The matrix product on the GPU. Same formulas; what changes, and why:

- By cuBLASLt (products.py): batches of equally distant matrices are one product, transposed ones read in place, and an
  axis that is broadcast is read again instead of copied. A batch times one matrix is one large product.
- The gradient of a matrix that a whole batch was multiplied by is a DeferredGradient, as in linear.py: its sum over the
  batch is the sum inside the product.
- In mixed precision the factors are cast to 16 bits, and wait for backward like that; results are float32.
"""

import numpy as np

from ops.broadcast import unbroadcast
from ops.kernels.cuda.factors import can_be_factors, weight_as, weight_gradient
from ops.kernels.cuda.launch import result_dtype
from ops.kernels.cuda.products import batched_gemm
from ops.matmul import MatMul


class MatMulCUDA(MatMul, backend="cupy"):
    saves_halves = True

    @classmethod
    def supports(cls, a, b):
        return a.ndim > 0 and b.ndim > 0 and a.size > 0 and b.size > 0 and can_be_factors(a, b)

    def forward(self, a, b):
        left, right = self._factor(0, a), self._factor(1, b)
        kept = (
            a if self._is_parameter(0) else left,                 # of a parameter there is a copy in any case
            b if self._is_parameter(1) else right,
        )
        self.save(*kept, a.dtype, b.dtype)
        out = self._product(*_matrices(left, right))
        if b.ndim == 1:
            out = out[..., 0]
        if a.ndim == 1:
            out = out[..., 0] if b.ndim == 1 else out[..., 0, :]
        return out

    def backward(self, dout):
        a, b, a_dtype, b_dtype = self.saved
        need_a, need_b = self.needs_grad
        dtype = result_dtype(self)
        left, right = _matrices(weight_as(a, dtype), weight_as(b, dtype))
        batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        dout = dout.reshape(*batch, left.shape[-2], right.shape[-1])
        dout = dout.astype(dtype, copy=False)
        da = db = None
        if need_a:
            product = self._product(dout, right.swapaxes(-1, -2))
            da = _summed_to(left.shape, product, a_dtype).reshape(a.shape)
        if need_b and b.ndim == 2 and batch == left.shape[:-2]:
            rows, drows = _rows(left), _rows(dout)
            db = weight_gradient(self, rows, drows, b_dtype)
            db = db if b_dtype == np.float32 else db.copy()       # an activation's: it is not added to in 16 bits
        elif need_b:
            product = self._product(left.swapaxes(-1, -2), dout)
            db = _summed_to(right.shape, product, b_dtype).reshape(b.shape)
        return da, db

    def _product(self, left, right):
        return batched_gemm(left, right, dtype=np.float32, precision=self.precision)

    def _factor(self, i, array):
        dtype = result_dtype(self)
        if self._is_parameter(i):
            return weight_as(array, dtype)
        return array.astype(dtype, copy=False)

    def _is_parameter(self, i):
        leaf = self.leaf(i)
        return leaf is not None and leaf.is_parameter


def _matrices(a, b):
    """A vector as a matrix of one row (a) or one column (b)."""
    a = a[None, :] if a.ndim == 1 else a
    b = b[:, None] if b.ndim == 1 else b
    return a, b


def _rows(x):
    return x.reshape(-1, x.shape[-1])


def _summed_to(shape, gradient, dtype):
    """The gradient of an operand of this shape; the sum over batches is float32."""
    return unbroadcast(gradient, shape).astype(dtype, copy=False)
