"""Addition on the CPU. Same formula; what it bought:

- Large arrays of one shape (the residual stream) are added by all threads: one core alone reads half of what the memory
  can give.
"""

import numpy as np

from ops.add import Add
from ops.kernels.cpu.compiler import packed
from tinygrad2.threads import POOL


class AddCPU(Add, backend="numpy"):
    @classmethod
    def supports(cls, a, b):
        both = isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
        return both and a.shape == b.shape and a.size >= 1 << 17 and packed(a, b)

    def forward(self, a, b):
        self.save(a.shape, b.shape)
        out = np.empty_like(a)
        flat = [x.reshape(-1) for x in (a, b, out)]
        POOL.split(lambda lo, hi: np.add(flat[0][lo:hi], flat[1][lo:hi], out=flat[2][lo:hi]), a.size, grain=1 << 16)
        return out
