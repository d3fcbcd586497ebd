"""Addition of two arrays of one shape on the GPU: the residual stream. Same formula; what changes, and why:

- In mixed precision the sum of float32 and 16 bits is one kernel: 10 bytes an element, where a cast of its own first
  would write and read 8 more. The result is float32.
- The gradient of an operand has the operand's dtype: dout itself for float32, one cast for both operands in 16 bits.

What is broadcast is left to the reference.
"""

import numpy as np

from ops.add import Add
from ops.kernels.cuda.cast import cast
from ops.kernels.cuda.elements import launch_elements
from ops.kernels.cuda.factors import can_be_factors
from tinygrad2.backend import is_array


class AddCUDA(Add, backend="cupy"):
    saves_halves = True

    @classmethod
    def supports(cls, a, b):
        return is_array(a) and is_array(b) and a.shape == b.shape and can_be_factors(a, b)

    def forward(self, a, b):
        self.save(a.dtype, b.dtype)
        xp, out = self.xp, self.xp.empty(a.shape, np.float32)
        if a.dtype != np.float32 and b.dtype == np.float32:
            a, b = b, a
        name = "add" if a.dtype == np.float32 else "add_halves"
        arrays = xp.ascontiguousarray(a), xp.ascontiguousarray(b), out
        launch_elements(xp, "add", name, b.dtype, arrays)
        return out

    def backward(self, dout):
        casts = {dtype: cast(self.xp, dout, dtype) for dtype, need in zip(self.saved, self.needs_grad) if need}
        return tuple(casts[dtype] if need else None for dtype, need in zip(self.saved, self.needs_grad))
