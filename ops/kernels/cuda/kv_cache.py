"""Attention of a new token to a cache of keys and values, where only the GPU knows how many there are (a CUDA graph).

- k and v are written to their place in one launch, where KVCache takes two, one for each.
- The place is read from an array: a graph that was recorded once serves all tokens.
- Blocks are launched for all of the cache. Those behind the last key read nothing, and the bits are those of attention
  to the keys that are there.
"""

import numpy as np

from ops.kernels.cuda.attention import attend_few
from ops.kernels.cuda.elements import is_computed
from ops.kernels.cuda.launch import launch
from tinygrad2.backend import xp_of
from tinygrad2.dispatch import register_kernel

_BLOCK = 256


def _supports(q, k, v, out, keys, values, position):
    for x in (q, k, v, out, keys, values):
        if x.dtype != q.dtype or x.strides[-1] != x.itemsize:
            return False
    one_text = len(keys) == 1 and out[0, :, 0].flags.c_contiguous
    return is_computed(q) and one_text and q.shape[3] <= 256 and keys.flags.c_contiguous


@register_kernel("attend_cached", "cupy", _supports)
def attend_cached(q, k, v, out, keys, values, position):
    """Attention of one token to the cache and to itself, written to `out`; its k and v join the cache at `position`.

    q, k, v, out    (1, nh, 1, hs), float32, float16 or bfloat16; heads of out one after the other
    keys, values    (1, nh, size, hs) of that dtype, contiguous; what is behind `position` does not count
    position        (1,) int64
    """
    xp, (_, nh, size, hs) = xp_of(q), keys.shape
    new = k, _head_distance(k), v, _head_distance(v)
    sizes = np.int32(nh), np.int32(size), np.int32(hs)
    args = *new, keys, values, position, *sizes
    launch(xp, "kv_cache", "kv_append", q.dtype, -(-nh * hs // _BLOCK), _BLOCK, args)
    logsum = xp.empty((1, nh, 1), np.float32)
    attend_few(xp, q, keys, values, out, logsum, position)


def _head_distance(x):
    return np.int64(x.strides[1] // x.itemsize)
