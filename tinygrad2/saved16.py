"""Activations that wait for backward in 16 bits, half the memory (mixed_precision.py has the ops, and the reasons).

    forward     save(x, weight, ...)    x becomes a Saved16: its values as bfloat16, rounded to nearest
    backward    saved                   x is a float32 array again, and laid out in memory as it was

`apply` packs a node's values when its forward is done, and the walk back unpacks them just before its backward, so ops
and kernels never see a Saved16. What backward gets is its own copy: a kernel may use that memory.

An array that several ops save (the input of three products, or the output of attention, which is the next op's input)
is packed once: as long as it lives and is not written to, the bits of its memory can be shared. Parameters, which are
kept in any case, stay what they are; so do float64 and integers. Kernels that save 16-bit arrays
(Function.saves_halves) are left alone. A Saved16 is a copy: what is written in place to the array after that does not
matter to it.
"""

import weakref

import numpy as np

from tinygrad2.backend import is_array, xp_of
from tinygrad2.bfloat16 import pack_bfloat16, unpack_bfloat16
from tinygrad2.mixed_precision import PACKED
from tinygrad2.precision import ROUNDED
from tinygrad2.writes import changed_since, last_write, owner_of


class Packed(tuple):
    """The saved values of a node, some of which are Saved16."""

    def unpack(self):
        """The values as the op has saved them."""
        return tuple(value.unpack() if isinstance(value, Saved16) else value for value in self)


def pack(node):
    """What a node has saved, activations as Saved16: a Packed. The same tuple if there are none."""
    activations = PACKED.get(node.name, 0) if node.precision == ROUNDED else 0
    if not activations:
        return node.saved
    parameters = [edge[0].data for edge in node.parents if edge and edge[0].is_parameter]
    head = [Saved16(value) if _fits(value, parameters) else value for value in node.saved[:activations]]
    return Packed((*head, *node.saved[activations:]))


def _fits(value, parameters):
    if not is_array(value) or value.dtype.char != "f" or not value.size:
        return False
    return not any(value is array for array in parameters)


def rounded(array, precision=ROUNDED):
    """float32 rounded to bfloat16, or to float16, a new float32 array that is laid out as `array` is; others as they
    are."""
    if not _fits(array, ()):
        return array
    return Saved16(array).unpack() if precision == ROUNDED else array.astype(np.float16).astype(np.float32)


class Saved16:
    """A float32 array as bfloat16.

    bits      its values, uint16, in the order in which they lie in memory; shared by all who save this memory
    shape     of the array, its axes by the distance of neighbours in memory, the largest first
    axes      where the array's axes are in that
    """

    __slots__ = ("_memory", "shape", "axes")

    def __init__(self, array):
        order = sorted(range(array.ndim), key=lambda i: -abs(array.strides[i]))
        sorted_array = array.transpose(order)
        self.shape = sorted_array.shape
        self.axes = sorted(range(array.ndim), key=order.__getitem__)
        self._memory = _shared(sorted_array)

    bits = property(lambda self: self._memory.bits)
    nbytes = property(lambda self: self._memory.bits.nbytes)

    def unpack(self):
        """A new float32 array."""
        return unpack_bfloat16(self.bits).reshape(self.shape).transpose(self.axes)


class _Memory:
    """The bits of some memory, and whose it is: `owner` refers weakly to the array that owns it, as of write number
    `written` (writes.py)."""

    __slots__ = ("bits", "owner", "written", "__weakref__")

    def __init__(self, bits, owner):
        self.bits, self.owner, self.written = bits, weakref.ref(owner), last_write()


_known: weakref.WeakValueDictionary = weakref.WeakValueDictionary()  # where an array lies -> _Memory


def _shared(array):
    """The _Memory of an array whose axes are in the order of memory; one that is known, if it has not changed."""
    owner, where = owner_of(array), _place(array)
    memory = _known.get(where)
    if memory is None or memory.owner() is not owner or changed_since(array, memory.written):
        memory = _known[where] = _Memory(pack_bfloat16(_rows(array)).reshape(-1), owner)
    return memory


def _place(array):
    """Which memory: (address, number of elements), and of arrays with gaps how they are laid out."""
    address = array.ctypes.data if xp_of(array).__name__ == "numpy" else array.data.ptr
    if array.flags.c_contiguous:
        return address, array.size
    return address, array.size, array.shape, array.strides


def _rows(array):
    """The array as pack_bfloat16 takes it: (n,), or rows that lie apart, (rows, n); a view if possible."""
    length = 1
    for size, stride in zip(reversed(array.shape), reversed(array.strides)):
        if size > 1 and stride != length * array.itemsize:
            return array.reshape(-1, length)
        length *= size
    return array.reshape(-1)
