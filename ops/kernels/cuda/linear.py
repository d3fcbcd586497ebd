"""Linear on the GPU. Same formulas; what changes, and why:

- One product each by cuBLASLt (products.py). The bias is added where the product leaves the registers: the result is
  written once, and not read and written again.
- dweight is a DeferredGradient: the product of 16-bit factors is added in float32 straight to the parameter's gradient.
  No array of the weight's size is made or added.
- dbias is summed by a kernel that reads dout once (column_sums.py).
- In mixed precision x, the copy of the weight, out and all gradients in flight have 16 bits: half the bytes, and the
  tensor cores' rate for 16 bits. Sums are float32.
"""

from ops.kernels.cuda.column_sums import bias_gradient
from ops.kernels.cuda.factors import bias_as, can_be_factors, weight_as, weight_gradient
from ops.kernels.cuda.launch import result_dtype
from ops.kernels.cuda.products import gemm
from ops.linear import Linear


class LinearCUDA(Linear, backend="cupy"):
    saves_halves = True

    @classmethod
    def supports(cls, x, weight, bias=None):
        return x.size > 0 and can_be_factors(x, weight, bias)

    def forward(self, x, weight, bias=None):
        dtype = result_dtype(self)
        rows = x.reshape(-1, x.shape[-1]).astype(dtype, copy=False)                    # (N, I)
        self.save(rows, weight)
        out = gemm(rows, weight_as(weight, dtype), bias=bias_as(bias, dtype), precision=self.precision)
        return out.reshape(*x.shape[:-1], weight.shape[1])

    def backward(self, dout):
        rows, weight = self.saved
        need_x, need_weight, need_bias = self.needs_grad
        drows = dout.reshape(-1, dout.shape[-1]).astype(rows.dtype, copy=False)        # (N, O)
        dx = None
        if need_x:
            dx = gemm(drows, weight_as(weight, rows.dtype).T, precision=self.precision)
            dx = dx.reshape(*dout.shape[:-1], weight.shape[0])
        dweight = weight_gradient(self, rows, drows, weight.dtype) if need_weight else None
        return dx, dweight, bias_gradient(self.xp, drows) if need_bias else None
