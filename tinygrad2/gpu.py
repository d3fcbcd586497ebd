"""GPUs: which one a rank uses, and memory of the host that it reaches fast."""

import sys
from contextvars import ContextVar

import numpy as np

from tinygrad2.backend import array_module
from tinygrad2.errors import UserError
from tinygrad2.system.memory import peak_resident_bytes


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


def free_memory():
    """Bytes of the calling thread's GPU that no program uses, or None if there is no GPU here."""
    try:
        return array_module("cuda").cuda.runtime.memGetInfo()[0]
    except UserError:
        return None


def peak_memory(device):
    """Bytes that this process has had at most: of the host, or of the GPU for arrays (CuPy's pool gives none back)."""
    if device == "cpu":
        return peak_resident_bytes()
    return array_module(device).get_default_memory_pool().total_bytes()
