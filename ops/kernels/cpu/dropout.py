"""Dropout on the CPU. Same formulas; what changes, and what it bought:

- The hash of tinygrad2/prng.py for one element at a time, in registers: the same bits as the reference, without its six
  arrays of 64-bit integers (3072 x 384: 4.0 -> 0.15 ms).
"""

import numpy as np

from ops.dropout import Dropout
from ops.kernels.cpu.numba_jit import helper, inlined, jit, packed
from ops.kernels.cpu.spread import spread
from tinygrad2.prng import FACTOR_1, FACTOR_2, GOLDEN
from tinygrad2.system.threads import POOL

_GOLDEN, _FACTOR_1, _FACTOR_2 = map(np.uint64, (GOLDEN, FACTOR_1, FACTOR_2))
_24, _27, _30, _31, _40 = map(np.uint64, (24, 27, 30, 31, 40))
_ONE, _TO_UNIT = np.float32(1), np.float32(2.0**-24)


@inlined
def keep32(p, key, position):
    """0 with probability p, else 1 / (1 - p): keep_mask of ops/dropout.py at one position of stream `key`."""
    z = (position + np.uint64(1)) * _GOLDEN + key
    z = (z ^ (z >> _30)) * _FACTOR_1
    z = (z ^ (z >> _27)) * _FACTOR_2
    z = z ^ (z >> _31)
    uniform = np.float32(np.int32(z >> _40)) * _TO_UNIT
    return _ONE / (_ONE - p) if uniform >= p else np.float32(0)


@helper
def drop_block(w, p, key, position, step):
    """w times dropout's factors; row i begins at `position` + i `step` of the stream."""
    for i in range(len(w)):
        row, start = w[i], position + np.uint64(i) * step
        for j in range(row.size):
            row[j] *= keep32(p, key, start + np.uint64(j))


@jit
def _dropout(lo, hi, x, out, p, key, first):
    if spread(lo, hi):
        return
    x, out = x[lo:hi], out[lo:hi]
    for i in range(out.size):
        out[i] = x[i] * keep32(p, key, first + np.uint64(lo + i))


class DropoutCPU(Dropout, backend="numpy"):
    @classmethod
    def supports(cls, x):
        return packed(x)

    def forward(self, x, p, key, first=0):
        self.save(x.shape, p, key, first)
        return _run(x, p, key, first)

    def backward(self, dout):
        shape, p, key, first = self.saved
        return (_run(np.asarray(dout, order="C"), p, key, first),)


def _run(x, p, key, first):
    out = np.empty_like(x)
    constants = np.float32(p), np.uint64(key), np.uint64(first)
    POOL.split(_dropout, x.size, x.reshape(-1), out.reshape(-1), *constants, grain=16384)
    return out
