"""Tensors in mapped files: read, converted to another dtype and transposed only when they are used."""

import mmap

import numpy as np

from tinygrad2.errors import UserError
from tinygrad2.io.bfloat16 import pack, unpack

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # dtypes that weights may have
_RAW = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # NumPy has no bfloat16
_PIECE = 1 << 22  # elements that are converted at a time


def is_shape(shape):
    """Can this be the shape of a tensor in a file: at most 8 integers from 0 on, whose product is below 2^48?"""
    if not isinstance(shape, (list, tuple)) or len(shape) > 8:
        return False
    size = 1
    for n in shape:
        if type(n) is not int or not 0 <= n < 1 << 48:
            return False
        size *= max(1, n)
    return size < 1 << 48


class LazyTensor:
    """A tensor in a file, with the part of an array's interface that `Module.load_state_dict` needs: `shape`, `astype`.

    buffer       bytes of the tensor, usually a slice of a memoryview of a mapped file
    code         "F64", "F32", "F16" or "BF16"
    shape        as in the file
    transposed   present it transposed: (in, out) if the file has (out, in)
    rows         present only so many of the first axis (None: all)
    """

    def __init__(self, buffer, code, shape, transposed=False, rows=None):
        self.raw = np.frombuffer(buffer, _RAW[code]).reshape(shape)
        self.raw = self.raw if rows is None else self.raw[:rows]
        self.code, self.transposed = code, transposed

    @classmethod
    def of(cls, array):
        """Returns a float32 array in memory as a LazyTensor."""
        array = np.ascontiguousarray(array, np.float32)
        return cls(memoryview(array.reshape(-1).view(np.uint8)), "F32", array.shape)

    @property
    def shape(self):
        """The shape that `astype` returns."""
        return self.raw.shape[::-1] if self.transposed else self.raw.shape

    @property
    def size(self):
        """Number of elements."""
        return self.raw.size

    def first(self, rows):
        """Returns only the first rows, still in the file."""
        part = LazyTensor.__new__(LazyTensor)
        part.raw, part.code, part.transposed = self.raw[:rows], self.code, self.transposed
        return part

    def transpose(self):
        """Returns the transposed tensor, still in the file."""
        part = LazyTensor.__new__(LazyTensor)
        part.raw, part.code, part.transposed = self.raw, self.code, not self.transposed
        return part

    def astype(self, dtype=np.float32, copy=False):
        """Returns an array of `shape`: a read-only view of the file if that is float32 and so is dtype, else a new one.

        A new one is converted piece by piece, so that the memory holds no second copy.
        """
        dtype = np.dtype(dtype)
        self._check_complete()
        if self.code == "F32" and dtype == np.float32 and not copy:
            return self.raw.T if self.transposed else self.raw
        out = np.empty(self.shape, dtype)
        target = out.T if self.transposed else out
        if not self.raw.ndim:
            target[...] = self._values(self.raw.reshape(1))[0]
            return out
        step = max(1, _PIECE // max(1, self.raw[:1].size))
        for start in range(0, len(self.raw), step):
            self._check_complete()
            target[start : start + step] = self._values(self.raw[start : start + step])
        return out

    def equals(self, other):
        """Do both have the same dtype, shape and values? Compares no values if both are the same part of a file."""
        if (self.code, self.transposed, self.raw.shape) != (other.code, other.transposed, other.raw.shape):
            return False
        if self.raw.ctypes.data == other.raw.ctypes.data:
            return True
        if not self.raw.ndim:
            return bool(self.raw == other.raw)
        step = max(1, _PIECE // max(1, self.raw[:1].size))
        parts = (slice(i, i + step) for i in range(0, len(self.raw), step))
        return all(np.array_equal(self.raw[part], other.raw[part]) for part in parts)

    def release(self):
        """Release the memory that reading the file has taken; later accesses read it again."""
        if (mapped := self._map()) is not None:
            release(mapped)

    def _check_complete(self):
        if (mapped := self._map()) is not None:
            check_complete(mapped)

    def _map(self):
        """The mapped file that it is in, or None."""
        base = self.raw
        while isinstance(base, (np.ndarray, memoryview)):
            base = base.base if isinstance(base, np.ndarray) else base.obj
        return base if isinstance(base, mmap.mmap) else None

    def _values(self, part):
        return unpack(np.ascontiguousarray(part)) if self.code == "BF16" else part


def map_file(file):
    """Returns a memoryview of an open file, whose bytes are read on access, and the map itself, for `release`."""
    mapped = MappedFile(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapped.name = file.name
    return memoryview(mapped), mapped


class MappedFile(mmap.mmap):
    """A mapped file that knows its name."""

    name = ""


def check_complete(mapped):
    """Raises UserError if a mapped file is shorter than when it was mapped: touching what is missing would end the
    process with SIGBUS, without a message. Called before each piece that is read; a file that is cut off while a piece
    is read (16 MB, some milliseconds) is not noticed in time."""
    if mapped.size() < len(mapped):
        name = getattr(mapped, "name", "the file")
        sizes = f"{mapped.size():,} bytes, {len(mapped):,} at first"
        raise UserError(f"{name}: was cut off while it is read: {sizes}; copy it again")


def release(mapped):
    """Release the memory that a mapped file takes; later accesses read it again."""
    if hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def write_elements(file, array, code):
    """Write a float32 array into an open file as F32 or BF16, a few rows at a time, so that no copy of it is made."""
    rows = array.reshape(1, -1) if array.ndim < 2 else array
    step = max(1, (1 << 20) // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        part = np.ascontiguousarray(rows[start : start + step], "<f4").reshape(-1)
        file.write(part if code == "F32" else pack(part))
