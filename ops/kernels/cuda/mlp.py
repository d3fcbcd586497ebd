"""The MLP on the GPU. Same formulas; what changes, and why:

- Products as in linear.py: biases are added in them, weight gradients straight to where they belong.
- One pass over h in backward makes g, in the memory of h, and dh, in that of dg: the two are read and written once.
- GELU can be part of the products: the one that makes h then writes gelu(h) as well, and the one that makes dg writes
  dh instead: one of 3 reads and writes of (N, H) less in forward, one of 5 in backward. But such products are slower:
  on an H200, at N = 65,536, by 0.17 and 0.22 ms, about what is saved (docs/gpu.md). So they are used where they were
  measured to be faster (tuning.py). cuBLASLt has the tanh form only.
"""

from ops.kernels.cuda import cublaslt
from ops.kernels.cuda.column_sums import bias_gradient
from ops.kernels.cuda.factors import bias_as, can_be_factors, weight_as, weight_gradient
from ops.kernels.cuda.gelu import gelu, gelu_gradient
from ops.kernels.cuda.launch import result_dtype
from ops.kernels.cuda.products import gemm
from ops.kernels.cuda.tuning import way_of
from ops.mlp import MLP
from tinygrad2.gpu.choices import GELU, WAYS


class MLPCUDA(MLP, backend="cupy"):
    saves_halves = True

    @classmethod
    def supports(cls, x, weight1, bias1, weight2, bias2):
        return x.size > 0 and can_be_factors(x, weight1, bias1, weight2, bias2)

    def forward(self, x, weight1, bias1, weight2, bias2, exact=False):
        dtype = result_dtype(self)
        rows = x.reshape(-1, x.shape[-1]).astype(dtype, copy=False)                    # (N, C)
        first, second = weight_as(weight1, dtype), weight_as(weight2, dtype)
        bias1, bias2 = bias_as(bias1, dtype), bias_as(bias2, dtype)
        h, g = (self.xp.empty((len(rows), first.shape[1]), dtype) for _ in range(2))   # (N, H)

        def separate(g):
            self._product(rows, first, out=h, bias=bias1)
            gelu(self.xp, h, exact, out=g)

        def fused(g):
            self._product(rows, first, out=g, bias=bias1, gelu="forward", aux=h)

        self._way("forward", rows, h, exact, bias1 is not None, separate, fused)(g)
        self.save(rows, h, weight1, weight2, exact)
        return self._product(g, second, bias=bias2).reshape(*x.shape[:-1], -1)

    def backward(self, dout):
        rows, h, weight1, weight2, exact = self.saved
        need_x, need_weight1, need_bias1, need_weight2, need_bias2 = self.needs_grad
        first, second = weight_as(weight1, h.dtype), weight_as(weight2, h.dtype)
        shape, dout = dout.shape, dout.reshape(len(rows), -1).astype(h.dtype, copy=False)

        def separate(g):
            dg = self._product(dout, second.T)                                         # (N, H)
            return gelu_gradient(self.xp, h, dg, exact, dx=dg, out=g)

        def fused(g):
            dh = self._product(dout, second.T, gelu="backward", aux=h)
            gelu(self.xp, h, out=g)
            return dh

        g = h                                                     # in its memory, when it is needed no more
        dh = self._way("backward", dout, h, exact, False, separate, fused)(g)
        dx = self._product(dh, first.T).reshape(*shape[:-1], -1) if need_x else None
        return (
            dx,
            weight_gradient(self, rows, dh, weight1.dtype) if need_weight1 else None,
            bias_gradient(self.xp, dh) if need_bias1 else None,
            weight_gradient(self, g, dout, weight2.dtype) if need_weight2 else None,
            bias_gradient(self.xp, dout) if need_bias2 else None,
        )

    def _product(self, a, b, **options):
        return gemm(a, b, precision=self.precision, **options)

    def _way(self, direction, rows, h, exact, has_bias, separate, fused):
        """Of two functions of where gelu(h) goes the one to call: `fused` has GELU in its product."""
        (N, K), H = rows.shape, h.shape[1]
        if exact or H % 8 or cublaslt.load_library() is None:     # rows are to be a multiple of 8 apart
            return separate
        kind = f"{h.dtype} {self.precision}{' with a bias' * has_bias}"
        ways = dict(zip(WAYS, (separate, fused)))
        return way_of(self.xp, f"{GELU} {direction}: ({N}, {K}) by ({K}, {H}), {kind}", N * K * H, ways, h)
