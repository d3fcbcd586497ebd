"""Tensors in files: read, converted to another dtype and transposed only when they are used."""

import math

import numpy as np

from tinygrad2.bfloat16 import pack_bfloat16, unpack_bfloat16
from tinygrad2.io.file_bytes import FileBytes, content_of

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # dtypes that weights may have
_RAW = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # NumPy has no bfloat16
_PIECE = 1 << 18  # elements that are converted at a time


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
    """A tensor in a file, with the part of an array's interface that loading weights needs: shape, size, `astype`.

    buffer       bytes of the tensor: a FileBytes, or a memoryview of bytes in memory
    code         "F64", "F32", "F16" or "BF16"
    shape        as in the file
    transposed   present it transposed: (in, out) if the file has (out, in)
    rows         present only so many of the first axis (None: all)

    Reading raises UserError if the file has been cut off or written to.
    """

    def __init__(self, buffer, code, shape, transposed=False, rows=None):
        self.buffer, self.code, self.stored, self.transposed = buffer, code, tuple(shape), transposed
        if math.prod(self.stored) * BYTES[code] != len(buffer):
            raise ValueError(f"{len(buffer):,} bytes are not {code} of shape {self.stored}")
        if rows is not None:
            self.stored = (min(rows, self.stored[0]), *self.stored[1:])

    @classmethod
    def of(cls, array):
        """Returns a float32 array in memory as a LazyTensor."""
        array = np.ascontiguousarray(array, np.float32)
        return cls(memoryview(array.reshape(-1).view(np.uint8)), "F32", array.shape)

    @property
    def shape(self):
        """The shape that `astype` returns."""
        return self.stored[::-1] if self.transposed else self.stored

    @property
    def size(self):
        """Number of elements."""
        return math.prod(self.stored)

    def first(self, rows):
        """Returns only the first rows, still in the file."""
        part = self._copy()
        part.stored = (min(rows, self.stored[0]), *self.stored[1:])
        return part

    def transpose(self):
        """Returns the transposed tensor, still in the file."""
        part = self._copy()
        part.transposed = not self.transposed
        return part

    def _copy(self):
        part = LazyTensor.__new__(LazyTensor)
        part.__dict__.update(self.__dict__)
        return part

    def astype(self, dtype=np.float32, copy=False):
        """Returns an array of `shape`, read and converted piece by piece; of bytes in memory a read-only view, if that
        is possible and no copy is asked for."""
        dtype = np.dtype(dtype)
        if self.code == "F32" and dtype == np.float32 and not copy and not isinstance(self.buffer, FileBytes):
            raw = next(self._pieces(self.size))[1].reshape(self.stored)
            return raw.T if self.transposed else raw
        out = np.empty(self.shape, dtype)
        target = out.T if self.transposed else out
        if not self.stored:
            target[...] = self._values(next(self._pieces(1))[1])[0]
            return out
        for rows, part in self._pieces(_PIECE):
            target[rows] = self._values(part)
        return out

    def __array__(self, dtype=None, copy=None):
        return self.astype(dtype or np.float32, copy=bool(copy))

    def equals(self, other):
        """Do both have the same dtype, shape and values? Compares no values if both are the same part of a file."""
        if (self.code, self.transposed, self.stored) != (other.code, other.transposed, other.stored):
            return False
        if isinstance(self.buffer, FileBytes) and self.buffer.same_as(other.buffer):
            return True
        return all(np.array_equal(a, b) for (_, a), (_, b) in zip(self._pieces(_PIECE), other._pieces(_PIECE)))

    def _pieces(self, size):
        """Yields (slice of rows, these rows as in the file) with about `size` elements; of no axis: one element."""
        rows, *rest = self.stored or (1,)
        row = max(1, math.prod(rest))
        step = max(1, size // row)
        for start in range(0, max(1, rows), step):
            part = slice(start, min(start + step, rows))
            width = row * BYTES[self.code] if 0 not in rest else 0
            content = content_of(self.buffer[part.start * width : part.stop * width])
            yield part, np.frombuffer(content, _RAW[self.code]).reshape(part.stop - part.start, *rest)

    def _values(self, part):
        return unpack_bfloat16(part) if self.code == "BF16" else part


def write_elements(file, array, code):
    """Write a float32 array into an open file as F32 or BF16, a few rows at a time, so that no copy of it is made."""
    rows = array.reshape(1, -1) if array.ndim < 2 else array
    step = max(1, (1 << 20) // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        part = np.ascontiguousarray(rows[start : start + step], "<f4").reshape(-1)
        file.write(part if code == "F32" else pack_bfloat16(part))
