"""Large arrays that are needed again in every step: their memory is kept when they are freed, and used again.

Filling a fresh array of 50 MB takes 4 ms, one that was used before 2: the system must find and clear every page of it.
"""

import math

import numpy as np

_kept: list[np.ndarray] = []  # flat float32 arrays that are free now, smallest first
_MOST = 4


class Lease:
    """`array`, float32 of the given shape with arbitrary values. Its memory is free again when the Lease is deleted."""

    def __init__(self, *shape):
        size = math.prod(shape)
        fitting = next((a for a in _kept if size <= a.size <= 2 * size + 1024), None)
        if fitting is None:
            fitting = np.empty(size, np.float32)
        else:
            _kept[:] = [a for a in _kept if a is not fitting]
        self._flat = fitting
        self.array = fitting[:size].reshape(shape)

    def __del__(self):
        _kept.append(self._flat)
        _kept.sort(key=len)
        del _kept[:-_MOST]  # the largest cost the most to allocate again
