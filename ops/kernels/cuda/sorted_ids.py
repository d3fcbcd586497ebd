"""Positions of a batch sorted by their token, on the GPU, for the gradient of an embedding.

Runs of 1,024 keys are sorted in shared memory, then merged two by two: 7 launches for 65,536 positions. CuPy's sort is
Thrust's, which promises neither that the host will not wait for it nor that it may be part of a CUDA graph.
"""

import numpy as np

from ops.kernels.cuda.launch import launch

_RUN, _BLOCK = 1024, 256                                          # keys that a block sorts; threads that merge


def sorted_keys(xp, ids, V):
    """(N,) int64, ascending: id 2^32 + n for each n of ids (N,), int64; for an id outside 0 .. V - 1 it is negative."""
    N, run = ids.size, _RUN
    keys, merged = (xp.empty(N, np.int64) for _ in range(2))
    args = ids, keys, np.int32(N), np.int32(V)
    launch(xp, "sorted_ids", "sort_runs", "float32", -(-N // _RUN), _RUN // 2, args)
    while run < N:
        args = keys, merged, np.int32(N), np.int32(run)
        launch(xp, "sorted_ids", "merge_runs", "float32", -(-N // _BLOCK), _BLOCK, args)
        keys, merged, run = merged, keys, 2 * run
    return keys
