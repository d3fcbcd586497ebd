"""A tensor as it lies in a file: mapped, not read; of another type or turned around; changed only when it is needed."""

import mmap

import numpy as np

from tinygrad2.io.bfloat16 import pack, unpack

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # kinds of numbers that weights may have
_RAW = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # NumPy has no bfloat16
_ROWS = 1 << 22  # numbers that are converted at a time


def is_shape(shape):
    """Can this be the shape of a tensor in a file: few whole numbers, whose product no file exceeds?"""
    if not isinstance(shape, (list, tuple)) or len(shape) > 8:
        return False
    size = 1
    for n in shape:
        if type(n) is not int or not 0 <= n < 1 << 48:
            return False
        size *= max(1, n)
    return size < 1 << 48


class LazyTensor:
    """A tensor in a file, with as much of an array's face as `Module.load_state_dict` needs: `shape` and `astype`.

    buffer       bytes of the tensor, best a slice of a memoryview of a map
    code         "F64", "F32", "F16" or "BF16"
    shape        that in the file
    transposed   it is wanted the other way round: (in, out) where the file has (out, in)
    rows         only so many of the first axis are wanted (None: all)
    """

    def __init__(self, buffer, code, shape, transposed=False, rows=None):
        self.raw = np.frombuffer(buffer, _RAW[code]).reshape(shape)
        self.raw = self.raw if rows is None else self.raw[:rows]
        self.code, self.transposed = code, transposed

    @classmethod
    def of(cls, array):
        """A float32 array in memory, with the face of a LazyTensor."""
        array = np.ascontiguousarray(array, np.float32)
        return cls(memoryview(array.reshape(-1).view(np.uint8)), "F32", array.shape)

    @property
    def shape(self):
        """As it is wanted."""
        return self.raw.shape[::-1] if self.transposed else self.raw.shape

    @property
    def size(self):
        """Number of numbers."""
        return self.raw.size

    def first(self, rows):
        """Only the first rows of it."""
        part = LazyTensor.__new__(LazyTensor)
        part.raw, part.code, part.transposed = self.raw[:rows], self.code, self.transposed
        return part

    def transpose(self):
        """The same, transposed."""
        part = LazyTensor.__new__(LazyTensor)
        part.raw, part.code, part.transposed = self.raw, self.code, not self.transposed
        return part

    def astype(self, dtype=np.float32, copy=False):
        """An array of the wanted shape: a read-only view of the file where it has just these numbers, else a new one.

        It is made piece by piece, so that beside it the memory holds a piece only.
        """
        dtype = np.dtype(dtype)
        if self.code == "F32" and dtype == np.float32 and not copy:
            return self.raw.T if self.transposed else self.raw
        out = np.empty(self.shape, dtype)
        target = out.T if self.transposed else out
        if not self.raw.ndim:
            target[...] = self._numbers(self.raw.reshape(1))[0]
            return out
        step = max(1, _ROWS // max(1, self.raw[:1].size))
        for start in range(0, len(self.raw), step):
            target[start : start + step] = self._numbers(self.raw[start : start + step])
        return out

    def equals(self, other):
        """Are they the same numbers, of the same kind? At once where they lie in the same place of a file."""
        if (self.code, self.transposed, self.raw.shape) != (other.code, other.transposed, other.raw.shape):
            return False
        if self.raw.ctypes.data == other.raw.ctypes.data:
            return True
        if not self.raw.ndim:
            return bool(self.raw == other.raw)
        step = max(1, _ROWS // max(1, self.raw[:1].size))
        parts = (slice(i, i + step) for i in range(0, len(self.raw), step))
        return all(np.array_equal(self.raw[part], other.raw[part]) for part in parts)

    def release(self):
        """Give back the memory that reading the file has taken; what is looked at again is read again."""
        base = self.raw
        while isinstance(base, (np.ndarray, memoryview)):
            base = base.base if isinstance(base, np.ndarray) else base.obj
        if isinstance(base, mmap.mmap):
            release(base)

    def _numbers(self, part):
        return unpack(np.ascontiguousarray(part)) if self.code == "BF16" else part


def map_file(file):
    """A memoryview of an open file (its bytes are read when they are looked at), and the map, to `release`."""
    whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return memoryview(whole), whole


def release(whole):
    """Give back the memory that a map takes; what is looked at again is read again."""
    if hasattr(mmap, "MADV_DONTNEED"):
        whole.madvise(mmap.MADV_DONTNEED)


def write_elements(file, array, code):
    """Write a float32 array as F32 or BF16, a few rows at a time, so that little memory is taken besides."""
    rows = array.reshape(1, -1) if array.ndim < 2 else array
    step = max(1, (1 << 20) // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        part = np.ascontiguousarray(rows[start : start + step], "<f4").reshape(-1)
        file.write(part if code == "F32" else pack(part))
