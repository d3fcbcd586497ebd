"""Random numbers without a hidden state: a hash of (key, counter), the same on NumPy and CuPy, bit for bit.

The numbers of a generator with a state depend on all calls before. A hash computes number i of stream `key` on its
own, in any order: what is drawn does not depend on how the work is divided.
Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15                                      # 2^64 / golden ratio: steps far, never repeats early
FACTOR_1, FACTOR_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def mix(z):
    """Mix 64 bits until each output bit depends on every input bit (the finaliser of splitmix64).

    Takes a uint64 array, which wraps around on overflow. Steele et al., "Fast splittable generators", 2014, fig. 17.
    """
    uint64 = z.dtype.type                                         # spelled out: the factors do not fit an int64
    z = (z ^ (z >> 30)) * uint64(FACTOR_1)
    z = (z ^ (z >> 27)) * uint64(FACTOR_2)
    return z ^ (z >> 31)


def mix_int(z):
    """The same as `mix` for one Python integer."""
    z = ((z ^ (z >> 30)) * FACTOR_1) & _MASK
    z = ((z ^ (z >> 27)) * FACTOR_2) & _MASK
    return z ^ (z >> 31)


def make_key(*parts):
    """One 64-bit key out of several integers, for example (seed, step, layer). Their order matters."""
    key = 0
    for part in parts:
        key = mix_int((key + GOLDEN * (part + 1)) & _MASK)
    return key


def permute(i, n, key):
    """Where the numbers i (an integer array, each in 0 .. n - 1) go in a shuffle of 0 .. n - 1, chosen by `key`.

    A shuffle without a table: each number is mapped on its own, however large n is. The bits of a number are cut into
    two halves, and four times one half is mixed into the other,

        left, right = right, left ^ hash(right)                     (a Feistel network: it can be run backwards,

    so no two numbers meet). That shuffles 0 .. 2^2h - 1; what comes out at n or above is sent through again, until it
    falls below. Black and Rogaway, "Ciphers with arbitrary finite domains", 2002, method 2.
    """
    half = max(1, -(-(n - 1).bit_length() // 2))
    bits, low = np.uint64(half), np.uint64((1 << half) - 1)

    def encrypt(x):
        left, right = x >> bits, x & low
        for turn in range(4):
            mixed = mix(right + np.uint64(make_key(key, turn)))
            left, right = right, left ^ (mixed & low)
        return left << bits | right

    x = encrypt(np.asarray(i).astype(np.uint64))
    while (outside := x >= n).any():
        x[outside] = encrypt(x[outside])
    return x.astype(np.int64)


def uniform(xp, shape, key, first=0):
    """Uniform float32 numbers in [0, 1): numbers first, first + 1, ... of stream `key`, in the given shape.

    key    an integer, or an array () of uint64
    """
    size = 1
    for n in shape:
        size *= n
    counter = xp.arange(first + 1, first + 1 + size, dtype=xp.uint64)
    key = key if hasattr(key, "dtype") else xp.uint64(key)
    bits = mix(counter * xp.uint64(GOLDEN) + key)                # (size,) uint64
    return ((bits >> 40).astype(xp.float32) * 2.0**-24).reshape(shape)   # the upper 24 bits fill a float32
