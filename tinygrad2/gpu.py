"""GPUs: which one a rank uses, and memory of the host that it reaches fast."""

import sys
from contextvars import ContextVar

import numpy as np


def choose_gpu(xp, number=None):
    """Use GPU `number` (modulo the GPUs there are) of this host from now on. On the CPU: nothing.

    Holds for the calling thread. `choose_gpu(xp)` in a thread that runs in a copy of its context chooses the same one.
    """
    if xp is not np:
        if number is not None:
            _gpu.set(number % xp.cuda.runtime.getDeviceCount())
        xp.cuda.Device(_gpu.get()).use()


_gpu = ContextVar("gpu", default=0)


def pinned_empty(n, dtype):
    """A NumPy array (n,) in memory that a GPU reads and writes at full speed. Only if CuPy is loaded."""
    cupy = sys.modules["cupy"]
    memory = cupy.cuda.alloc_pinned_memory(n * np.dtype(dtype).itemsize)
    return np.frombuffer(memory, dtype, n)
