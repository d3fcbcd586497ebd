"""Uniform numbers out of a hash: number i of stream `key` for whoever asks, in any order (see tinygrad2/prng.py)."""

from tinygrad2.prng import FACTOR_1, FACTOR_2, GOLDEN, make_key, mix, mix_int

__all__ = ["FACTOR_1", "FACTOR_2", "GOLDEN", "make_key", "mix", "mix_int", "uniform"]


def uniform(xp, shape, key, first=0):
    """Uniform float32 numbers in [0, 1): numbers first, first + 1, ... of stream `key`, in the given shape."""
    size = 1
    for n in shape:
        size *= n
    counter = xp.arange(first + 1, first + 1 + size, dtype=xp.uint64)
    bits = mix(counter * xp.uint64(GOLDEN) + xp.uint64(key))     # (size,) uint64
    return ((bits >> 40).astype(xp.float32) * 2.0**-24).reshape(shape)   # the upper 24 bits fill a float32
