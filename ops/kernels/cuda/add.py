"""Addition of two arrays on the GPU: the residual stream, and the embeddings that begin it. Same formula; what changes:

- In mixed precision the sum of float32 and 16 bits is one kernel: 10 bytes an element, where a cast of its own first
  would write and read 8 more. The result is float32.
- The gradient of an operand has the operand's dtype: dout itself for float32, one cast for both operands in 16 bits.
- The second operand may lack leading axes, as positions do: its gradient is a sum over rows (column_sums.py).

Other broadcasting is left to the reference.
"""

import math

import numpy as np

from ops.add import Add
from ops.kernels.cuda.cast import cast
from ops.kernels.cuda.column_sums import bias_gradient
from ops.kernels.cuda.elements import launch_elements
from ops.kernels.cuda.factors import can_be_factors
from tinygrad2.backend import is_array


class AddCUDA(Add, backend="cupy"):
    saves_halves = True

    @classmethod
    def supports(cls, a, b):
        if not is_array(a) or not is_array(b) or not can_be_factors(a, b):
            return False
        if a.shape == b.shape:
            return True
        fits = 0 < b.size < 2**31 and a.size < 2**31 * b.size
        return fits and b.shape == a.shape[a.ndim - b.ndim :]

    def forward(self, a, b):
        self.save((a.shape, a.dtype), (b.shape, b.dtype))
        xp, out = self.xp, self.xp.empty(a.shape, np.float32)
        if a.dtype != np.float32 and b.dtype == np.float32:
            a, b = (b, a) if a.shape == b.shape else (cast(xp, a, np.float32), b)
        name = "add" if a.dtype == np.float32 else "add_halves"
        arrays = xp.ascontiguousarray(a), xp.ascontiguousarray(b), out
        launch_elements(xp, "add", name, b.dtype, arrays, np.int64(b.size))
        return out

    def backward(self, dout):
        casts: dict = {}
        for (shape, dtype), need in zip(self.saved, self.needs_grad):
            if need and (shape, dtype) not in casts:
                summed = dout if shape == dout.shape else self._sum_of_copies(dout, shape)
                casts[shape, dtype] = cast(self.xp, summed, dtype)
        return tuple(casts[key] if need else None for key, need in zip(self.saved, self.needs_grad))

    def _sum_of_copies(self, dout, shape):
        return bias_gradient(self.xp, dout.reshape(-1, math.prod(shape))).copy().reshape(shape)
