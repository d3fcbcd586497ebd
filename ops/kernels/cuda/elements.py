"""Launches of kernels that go through flat arrays: 8 elements a thread, read and written by 16 bytes (elements.cuh)."""

import numpy as np

from ops.kernels.cuda.launch import launch
from tinygrad2.halves import is_half

_ELEMENTS, _BLOCK = 8, 256                                        # of a thread, and threads of a block


def launch_elements(xp, file, name, dtype, arrays, *scalars):
    """Run NAME(*arrays, n, wide, *scalars) over contiguous arrays of n elements (None: left out), the first of them
    not None. Nothing is launched for n = 0."""
    n = arrays[0].size
    wide = all(array is None or array.data.ptr % 16 == 0 for array in arrays)
    if n:
        args = (*arrays, np.int64(n), np.int32(wide), *scalars)
        launch(xp, file, name, dtype, -(-n // (_ELEMENTS * _BLOCK)), _BLOCK, args)


def is_computed(array):
    """Has this array a dtype that kernels take, float32, float16 or bfloat16?"""
    return array.dtype == np.float32 or is_half(array.dtype)
