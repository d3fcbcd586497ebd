from tinygrad2.backend import array_module
from tinygrad2.tensor import Tensor


class KVCache:
    """The keys and values of all tokens so far, so that a new token costs the work of one token.

    What attention needs of the past is k and v only, and these never change once computed: a token does not see what
    comes after it. They lie in arrays of full length, allocated once:

        k[layer], v[layer]    (B, nh, block_size, hs), filled up to `position`

    A forward pass over T new tokens appends to every layer and then moves `position` on by T. Pope et al., "Efficiently
    scaling transformer inference", 2022, section 2.
    """

    def __init__(self, config, batch=1, device="cpu"):
        xp = array_module(device)
        shape = (batch, config.n_head, config.block_size, config.n_embd // config.n_head)
        self.k = [xp.zeros(shape, dtype=xp.float32) for _ in range(config.n_layer)]
        self.v = [xp.zeros(shape, dtype=xp.float32) for _ in range(config.n_layer)]
        self.size = config.block_size
        self.position = 0

    @property
    def full(self):
        return self.position == self.size

    def reset(self):
        """Forget all tokens; the memory stays."""
        self.position = 0

    def check_room(self, batch, T):
        """Raises ValueError where T more tokens of so many sequences do not fit."""
        if batch != len(self.k[0]):
            raise ValueError(f"the cache is for {len(self.k[0])} sequence(s), not {batch}")
        if self.position + T > self.size:
            raise ValueError(
                f"{self.position} + {T} tokens do not fit in a cache for {self.size}; reset() it and begin again"
            )

    def layer(self, i):
        """The part of one layer, as MultiHeadAttention takes it."""
        return _Layer(self, i)


class _Layer:
    def __init__(self, cache, i):
        self.cache, self.k, self.v = cache, cache.k[i], cache.v[i]

    def append(self, k, v):                                       # Tensors (B, nh, T, hs)
        """Write those of the new tokens behind the others; gives all so far, Tensors (B, nh, position + T, hs)."""
        start = self.cache.position
        end = start + k.shape[2]
        self.k[:, :, start:end] = k.data
        self.v[:, :, start:end] = v.data
        return Tensor(self.k[:, :, :end]), Tensor(self.v[:, :, :end])
