"""Memory of the stand-in for CuPy: allocators, a pool, and arrays that lie where an allocator says.

Without `using_allocator` an array lies where NumPy has put it. With one, it is copied to the address that the allocator
returns: arrays that are given the same memory at the same time overwrite each other, as on a GPU. The memory is free as
soon as the device array and all views of it are gone, whoever else still knows the address; it stays mapped for good.
"""

import bisect
import contextlib
import ctypes
import threading
from types import SimpleNamespace

import numpy as np

UNIT = 512  # bytes
_thread = threading.local()
_starts, _blocks = [], []  # addresses of all blocks, ascending, and their bytes


def new_block(size):
    """A NumPy array of bytes that begins at a multiple of UNIT."""
    memory = np.empty(size + UNIT, np.uint8)
    first = -memory.ctypes.data % UNIT
    block = memory[first : first + size]
    i = bisect.bisect(_starts, block.ctypes.data)
    _starts.insert(i, block.ctypes.data)
    _blocks.insert(i, block)
    return block


def block_at(address, otherwise=None):
    """The block that an address is in, `otherwise` if it is in none."""
    i = bisect.bisect(_starts, address) - 1
    return _blocks[i] if i >= 0 and address < _starts[i] + _blocks[i].size else otherwise


class UnownedMemory:
    def __init__(self, ptr, size, owner, device_id=-1):
        self.ptr, self.size, self._owner, self.device_id = ptr, size, owner, device_id


class MemoryPointer:
    def __init__(self, mem, offset):
        self.mem, self.ptr, self.device_id = mem, mem.ptr + offset, mem.device_id


class _PooledMemory(UnownedMemory):
    def __init__(self, pool, address, size):
        super().__init__(address, size, None, 0)
        self.pool = pool

    def __del__(self):
        self.pool.free.setdefault(self.size, []).append(self.ptr)


class Pool:
    """MemoryPool: what is free is given to arrays of the same size.

    requests    how many arrays have asked for memory
    """

    def __init__(self, used=0):
        self.free, self.bytes, self.requests = {}, used, 0

    def malloc(self, size):
        self.requests += 1
        if not size:
            return MemoryPointer(UnownedMemory(0, 0, None, 0), 0)
        size = -(-size // UNIT) * UNIT
        if not self.free.get(size):
            self.free.setdefault(size, []).append(new_block(size).ctypes.data)
            self.bytes += size
        return MemoryPointer(_PooledMemory(self, self.free[size].pop(), size), 0)

    def total_bytes(self):
        return self.bytes

    def free_all_blocks(self):
        """What was free is spoilt: nobody may rely on it."""
        for size, addresses in self.free.items():
            self.bytes -= size * len(addresses)
            for address in addresses:
                block_at(address)[:] = 0xFF
        self.free.clear()


default_pool = Pool(used=12_000_000)


def get_allocator():
    return getattr(_thread, "allocator", None) or default_pool.malloc


@contextlib.contextmanager
def using_allocator(allocator=None):
    before, _thread.allocator = getattr(_thread, "allocator", None), allocator
    try:
        yield
    finally:
        _thread.allocator = before


def placed(array):
    """(MemoryPointer, the array at its address), or (None, the array) where no allocator is in use."""
    allocator = getattr(_thread, "allocator", None)
    if allocator is None or not array.nbytes:
        return None, array
    array = array if array.flags.owndata else np.copy(array, order="K")
    pointer = allocator(array.nbytes)
    memory = (ctypes.c_char * array.nbytes).from_address(pointer.ptr)
    there = np.ndarray(array.shape, array.dtype, memory, strides=array.strides)
    there[...] = array
    return pointer, there


names = SimpleNamespace(
    UnownedMemory=UnownedMemory, MemoryPointer=MemoryPointer, MemoryPool=Pool, get_allocator=get_allocator,
    using_allocator=using_allocator,
)  # fmt: skip
