"""Large arrays that are needed again in every step: their memory is kept when they are freed, and used again.

Filling a fresh array of 50 MB takes 4 ms, one that was used before 2: the system must find and clear every page of it.
"""

import math

import numpy as np

_kept: dict[int, np.ndarray] = {}  # {id of it: flat float32 array} that are free now
_MOST = 4


class Lease:
    """`array`, float32 of the given shape with arbitrary values. Its memory is free again when the Lease is deleted.

    Threads share what is kept. There is no lock, since Python may delete a Lease at any moment, also while its thread
    is in here: whoever pops an array out of the dict has it.
    """

    _flat = None

    def __init__(self, *shape):
        size = math.prod(shape)
        for flat in sorted(list(_kept.values()), key=len):        # list: a copy that no other thread changes
            if size <= flat.size <= 2 * size + 1024 and _kept.pop(id(flat), None) is not None:
                break
        else:
            flat = np.empty(size, np.float32)
        self._flat = flat
        self.array = flat[:size].reshape(shape)

    def __del__(self):
        if self._flat is not None:
            _kept[id(self._flat)] = self._flat
            for flat in sorted(list(_kept.values()), key=len)[:-_MOST]:   # the largest cost the most to allocate again
                _kept.pop(id(flat), None)
