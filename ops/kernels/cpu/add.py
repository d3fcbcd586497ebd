"""Addition on the CPU. Same formula; what it bought:

- Large arrays of one shape (the residual stream) are added by all threads: one core alone reaches half of the memory
  bandwidth.
"""

import numpy as np

from ops.add import Add
from ops.kernels.cpu.numba_jit import jit, packed
from ops.kernels.cpu.spread import spread
from tinygrad2.system.threads import POOL


class AddCPU(Add, backend="numpy"):
    @classmethod
    def supports(cls, a, b):
        both = isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
        return both and a.shape == b.shape and a.size >= 1 << 17 and packed(a, b)

    def forward(self, a, b):
        self.save(a.shape, b.shape)
        out = np.empty_like(a)
        POOL.split(_add, a.size, a.reshape(-1), b.reshape(-1), out.reshape(-1), grain=1 << 16)
        return out


@jit
def _add(lo, hi, a, b, out):
    if spread(lo, hi):
        return
    a, b, out = a[lo:hi], b[lo:hi], out[lo:hi]
    for i in range(out.size):
        out[i] = a[i] + b[i]
