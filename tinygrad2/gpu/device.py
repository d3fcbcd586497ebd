"""GPUs: which one a rank uses, its memory, and memory of the host that it reaches fast."""

import sys
from contextvars import ContextVar
from typing import Any

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


def count_gpus():
    """How many GPUs this host has; 1 where none is found."""
    try:
        return max(1, array_module("cuda").cuda.runtime.getDeviceCount())
    except UserError:
        return 1


def free_memory():
    """Bytes of the calling thread's GPU that no program uses, or None if there is no GPU here."""
    try:
        return array_module("cuda").cuda.runtime.memGetInfo()[0]
    except UserError:
        return None


def new_pool(xp):
    """A pool of the GPU's memory of which `peak_memory` knows."""
    _pools.append(pool := xp.cuda.MemoryPool())
    return pool


_pools: list[Any] = []  # besides CuPy's own


def give_back(xp):
    """Return to the GPU what CuPy's pool keeps for arrays to come. Waits for the GPU. Returns what pools had before."""
    _before.append(bytes_of_pools(xp))
    xp.get_default_memory_pool().free_all_blocks()
    return _before[-1]


_before: list[int] = []  # bytes of all pools, whenever some have been given back


def peak_memory(device):
    """Bytes that this process has had at most: of the host, or of the GPU for arrays (pools, and what lies in one block
    of them: arena.py). Pools give none back, but by `give_back`."""
    if device == "cpu":
        return peak_resident_bytes()
    return max([bytes_of_pools(array_module(device)), *_before])


def bytes_of_pools(xp):
    """Bytes of the GPU that CuPy's pools have now, given to arrays or kept for others."""
    return sum(pool.total_bytes() for pool in [xp.get_default_memory_pool(), *_pools])


def describe_gpu(xp):
    """The calling thread's GPU in words: its number, name, compute capability and memory."""
    number, count = _gpu.get(), xp.cuda.runtime.getDeviceCount()
    name = xp.cuda.runtime.getDeviceProperties(number)["name"].decode()
    capability = xp.cuda.Device(number).compute_capability
    free, total = xp.cuda.runtime.memGetInfo()
    return (f"GPU {number} of {count}, {name}, compute capability {capability[:-1]}.{capability[-1]}, "
            f"{total / 1e9:.0f} GB, {free / 1e9:.0f} free")  # fmt: skip
