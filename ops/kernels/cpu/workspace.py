"""Large arrays that are needed again in every step: kept when they are let go, and handed out again.

Filling a fresh array of 50 MB takes 4 ms, one that was used before 2: the system must find and clear every page of it.
"""

import math

import numpy as np

_kept = []  # flat float32 arrays nobody uses now, smallest first
_MOST = 4


class Lease:
    """`array`, float32 of the given shape with arbitrary values. Its memory goes back when the Lease is let go."""

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
        del _kept[:-_MOST]  # the largest are the dearest to make anew
