"""Which memory was written to in place, and when, so that backward notices saved values that have changed since.

Writes are numbered. An op that saves arrays notes the number of the last write (Function.saved_at); before its
backward, `changed_since` looks for a later one into the memory of these arrays. Memory is told by the array that owns
it, so a write through a view counts, as one through `x.detach()` or `y = x.reshape(...)` does.

    with no_grad():
        p -= lr * p.grad            wrote(p.data)
        rows = p[1:]
        rows *= 0                   wrote(rows.data): a part of the same memory

Numbered are writes of `inplace.py`, of optimizers, and where weights are loaded or come from other ranks. What is done
to `x.data` itself stays unseen.
"""

import threading
import weakref
from typing import Any

import numpy as np

from tinygrad2.backend import Array

_lock = threading.Lock()
_last = 0
_writes: dict[int, dict[tuple[int, int], int]] = {}  # id of the owner -> bytes [start, end) -> their last write


def last_write() -> int:
    """The number of the last write, of any thread."""
    return _last


def wrote(array: Array) -> None:
    """Number a write into `array`."""
    global _last
    owner = owner_of(array)
    with _lock:
        _last += 1
        if id(owner) not in _writes:
            _writes[id(owner)] = {}
            weakref.finalize(owner, _writes.pop, id(owner), None).atexit = False
        _writes[id(owner)][_extent(array)] = _last


def changed_since(array: Array, number: int) -> bool:
    """Was memory of `array`, or between its elements, written to after the write of that number?"""
    if number == _last or not (writes := _writes.get(id(owner_of(array)))):
        return False
    start, end = _extent(array)
    with _lock:
        return any(last > number and low < end and start < high for (low, high), last in writes.items())


def owner_of(array: Any) -> Any:
    """The array whose memory it is."""
    while isinstance(array.base, (np.ndarray, type(array))):
        array = array.base
    return array


def address(array: Any) -> int:
    """Where its first element lies, in the memory of its device."""
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr


def _extent(array: Any) -> tuple[int, int]:
    """The addresses [start, end) between which its elements lie."""
    start = address(array)
    spans = [(size - 1) * stride for size, stride in zip(array.shape, array.strides)]
    return start + sum(min(span, 0) for span in spans), start + sum(max(span, 0) for span in spans) + array.itemsize
