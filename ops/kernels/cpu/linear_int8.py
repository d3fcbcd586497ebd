"""The int8 linear map on the CPU. Same formulas; what changes, and what it bought:

- Few rows (a text is generated one row at a time): a weight is read once, as the byte it is, and widened in a register.
  The reference makes a float32 copy of the matrix first. The time is that of reading, a quarter of float32's.
- Many rows (a prompt): the reference, since there the products count.
"""

import numpy as np

from ops.kernels.cpu.numba_jit import is_float32, jit
from ops.kernels.cpu.spread import spread
from ops.linear_int8 import LinearInt8
from tinygrad2.system.threads import POOL

_MOST_ROWS = 4
_GRAIN = 1 << 19                                                  # weights per part: 25 us, what waking a thread costs


class LinearInt8CPU(LinearInt8, backend="numpy"):
    @classmethod
    def supports(cls, x, q, scale, bias=None):
        few = x.size <= _MOST_ROWS * x.shape[-1]
        return few and x.size > 0 and is_float32(x, scale, bias) and q.dtype == np.int8 and q.flags.c_contiguous

    def forward(self, x, q, scale, bias=None):
        self.save(x, q, scale)
        rows = np.asarray(x, order="C").reshape(-1, x.shape[-1])
        out = np.empty((len(rows), len(q)), np.float32)
        bias = np.zeros_like(scale) if bias is None else bias
        POOL.split(_int8, len(q), rows, q, scale, bias, out, grain=max(1, _GRAIN // q.shape[1]))
        return out.reshape(*x.shape[:-1], len(q))


@jit
def _int8(lo, hi, a, q, scale, bias, out):
    if spread(lo, hi):
        return
    for j in range(lo, hi):
        row = q[j]
        for i in range(len(a)):
            x = a[i]
            total = np.float32(0)
            for k in range(row.size):
                total += x[k] * np.float32(row[k])
            out[i, j] = scale[j] * total + bias[j]
