"""Softmax and its logarithm on the GPU. Same formulas; what changes, and why:

- A block per row: one visit for the largest score and the sum of e^(score - largest), another, from the cache, for the
  result. x is read and p written, 8 bytes a score in float32, where the reference's five passes move 28. Backward reads
  p and dout and writes dx: 12 bytes where four passes move 36.
- Rows along another axis than the last are copied to lie along memory first, as in the CPU's kernel.
"""

import numpy as np

from ops.kernels.cuda.cast import cast
from ops.kernels.cuda.elements import is_computed
from ops.kernels.cuda.launch import launch, wide
from ops.log_softmax import LogSoftmax
from ops.softmax import Softmax


class SoftmaxCUDA(Softmax, backend="cupy"):
    logarithm = False
    saves_halves = True

    @classmethod
    def supports(cls, x):
        return is_computed(x) and x.ndim > 0 and x.size > 0

    def forward(self, x, axis=-1):
        xp, x = self.xp, self.xp.ascontiguousarray(self.xp.moveaxis(x, axis, -1))
        p = xp.empty(x.shape, x.dtype)
        _launch(xp, "softmax_forward", (x, p), self.logarithm)
        self.save(p, axis)
        return xp.moveaxis(p, -1, axis)

    def backward(self, dout):
        xp, (p, axis) = self.xp, self.saved                       # p (..., n)
        dx = xp.empty(p.shape, p.dtype)
        _launch(xp, "softmax_backward", (p, cast(xp, xp.moveaxis(dout, axis, -1), p.dtype), dx), self.logarithm)
        return (xp.moveaxis(dx, -1, axis),)


class LogSoftmaxCUDA(LogSoftmax, backend="cupy"):
    logarithm = True
    saves_halves = True
    supports, forward, backward = SoftmaxCUDA.supports, SoftmaxCUDA.forward, SoftmaxCUDA.backward


def _launch(xp, name, arrays, logarithm):
    """A block for each row of contiguous arrays (..., n)."""
    n = arrays[0].shape[-1]
    sizes = np.int32(n), wide(n, *arrays), np.int32(logarithm)
    threads = 32 * min(32, -(-n // 256))
    launch(xp, "softmax", name, arrays[0].dtype, arrays[0].size // n, threads, (*arrays, *sizes))
