"""Dropout on the GPU. Same formulas; what changes, and why:

- The hash of tinygrad2/prng.py is computed in registers (dropout.cuh): the same mask, bit for bit. An element is read
  and written once, 4 bytes in 16 bits and 8 in float32, where the reference's hash alone makes twelve arrays of 64-bit
  integers and moves 208 bytes. Backward is the same kernel: no mask is kept.
- The key is read on the GPU: a CUDA graph of a training step, which repeats its launches with the same arguments, finds
  a new one there in each step (tinygrad2/training/captured.py).
- The result has the dtype of x: 16 bits behind a product, float32 in the residual stream.
"""

import numpy as np

from ops.dropout import Dropout
from ops.kernels.cuda.elements import is_computed, launch_elements


class DropoutCUDA(Dropout, backend="cupy"):
    saves_halves = True

    @classmethod
    def supports(cls, x):
        return is_computed(x)

    def forward(self, x, p, key, first=0):
        key = key_on_gpu(self.xp, key)
        self.save(p, key, first)
        return _drop(self.xp, x, p, key, first)

    def backward(self, dout):
        return (_drop(self.xp, dout, *self.saved),)


def key_on_gpu(xp, key):
    """A key as an array () of uint64; itself if it is one."""
    return key if isinstance(key, xp.ndarray) else xp.full((), np.uint64(key), np.uint64)


def _drop(xp, x, p, key, first):
    x, out = xp.ascontiguousarray(x), xp.empty(x.shape, x.dtype)
    scalars = np.float32(p), np.float32(1 / (1 - p)), key, np.uint64(first)
    launch_elements(xp, "dropout", "dropout", x.dtype, (x, out), *scalars)
    return out
