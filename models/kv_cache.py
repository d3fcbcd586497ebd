"""Keys and values of earlier tokens, which attention needs for every new one."""

import numpy as np

from tinygrad2.backend import array_module
from tinygrad2.halves import half_dtype, is_half
from tinygrad2.precision import MIXED, precision
from tinygrad2.tensor import Tensor


class KVCache:
    """The keys and values of all tokens so far, so that a new token costs the work of one token.

    Of the past, attention needs k and v only, and these never change once computed: a token does not attend to what
    comes after it. They are kept in arrays of full length, allocated once:

        k[layer], v[layer]    (B, nh, size, hs), filled up to `position`

    They are float32. A cache that is made in mixed precision on a GPU, and for it, has 16 bits, as k and v have there:
    attention reads half the bytes, and casts nothing. In another precision all of it is cast for each token.

    A forward pass over T new tokens appends to every layer and then advances `position` by T. Pope et al., "Efficiently
    scaling transformer inference", 2022, section 2.
    """

    def __init__(self, config, batch=1, device="cpu", size=None):
        xp = array_module(device)
        self.size = min(size or config.block_size, config.block_size)
        shape = (batch, config.n_head, self.size, config.n_embd // config.n_head)
        dtype = half_dtype(precision()) if xp is not np and precision() in MIXED else np.float32
        self.k = [xp.zeros(shape, dtype=dtype) for _ in range(config.n_layer)]
        self.v = [xp.zeros(shape, dtype=dtype) for _ in range(config.n_layer)]
        self.position = 0

    @property
    def full(self):
        return self.position == self.size

    def reset(self):
        """Forget all tokens; the memory stays."""
        self.position = 0

    def copy_from(self, other, position=None):
        """Copy the first `position` tokens of another cache, or all of them: the same text is to be continued twice."""
        self.position = other.position if position is None else position
        for target, source in zip(self.k + self.v, other.k + other.v):
            target[:, :, : self.position] = source[:, :, : self.position]

    def positions(self, batch, T):
        """Positions of the next T tokens, (T,). Raises ValueError for another number of sequences than the cache has,
        and if T tokens do not fit."""
        if batch != len(self.k[0]):
            raise ValueError(f"the cache is for {len(self.k[0])} sequence(s), not {batch}")
        if self.position + T > self.size:
            raise ValueError(
                f"{self.position} + {T} tokens do not fit in a cache for {self.size}; reset() it and start over"
            )
        return np.arange(self.position, self.position + T)

    def advance(self, T):
        """T tokens have passed through all layers."""
        self.position += T

    def layer(self, i):
        """The cache of layer i, as MultiHeadAttention takes it."""
        return _Layer(self, i)


class _Layer:
    def __init__(self, cache, i):
        self.cache, self.k, self.v = cache, cache.k[i], cache.v[i]

    @property
    def layers(self):
        return [self]

    def append(self, k, v):                                       # Tensors (B, nh, T, hs)
        """Append those of the new tokens; returns all so far, Tensors (B, nh, position + T, hs)."""
        # lab: begin kv_cache
        start = self.cache.position
        end = start + k.shape[2]
        self.k[:, :, start:end] = k.data
        self.v[:, :, start:end] = v.data
        return Tensor(self.k[:, :, :end]), Tensor(self.v[:, :, :end])
        # lab: end kv_cache

    def attend(self, head, q, k, v):
        """Attention of the new tokens to all tokens so far, (B, nh, T, hs)."""
        keys, values = self.append(k, v)
        if is_half(keys.dtype) and keys.dtype != q.dtype:         # it was made in another precision
            keys, values = (Tensor(x.data.astype(q.dtype)) for x in (keys, values))
        return head(q, keys, values)
