"""What the launches of attention.py pass to its kernels: views of four axes, distances, and the numbers of the hash."""

import math

import numpy as np

from ops.kernels.cuda.dropout import key_on_gpu
from ops.kernels.cuda.launch import wide


def four_axes(xp, x, dtype):
    """x (T, hs), (B, T, hs) or (B, nh, T, hs) as the last of these; copied if a row's channels are no neighbours."""
    x = x.astype(dtype, copy=False)
    x = x if x.strides[-1] == x.itemsize or x.shape[-1] == 1 else xp.ascontiguousarray(x)
    return x[(None,) * (4 - x.ndim)]


def strides(x):
    """Distances of batches, heads and rows, in elements."""
    batch, head, row, _ = x.strides
    size = x.itemsize
    return np.int64(batch // size), np.int64(head // size), np.int64(row // size)


def places(*arrays):
    """Arrays, each with its distances."""
    args = []
    for x in arrays:
        args += [x, *strides(x)]
    return args


def sizes(q, k):
    """nh, Tq, Tk, hs."""
    _, nh, Tq, hs = q.shape
    return np.int32(nh), np.int32(Tq), np.int32(k.shape[2]), np.int32(hs)


def wide_rows(*arrays):
    """1 if all rows can be read by 16 bytes, else 0."""
    for x in arrays:
        if any([stride % 16 for stride in x.strides[:3]]):
            return np.int32(0)
    return wide(arrays[0].shape[-1], *arrays)


def log2_scale(hs):
    """Scores times this are exponents of 2."""
    return np.float32(math.log2(math.e) / math.sqrt(hs))


def dropout_hash(xp, p, key, first):
    """The hash's key, on the GPU (None for p = 0), and first counter, the least of its 24 bits to be kept, and the
    factor of what is kept."""
    threshold = math.ceil(float(np.float32(p)) * 2**24)
    factor = np.float32(1 / (1 - p))
    return key_on_gpu(xp, key) if p else None, np.uint64(first), np.uint32(threshold), factor
