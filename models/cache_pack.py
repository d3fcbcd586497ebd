"""The caches of several texts that go through a model together."""

import numpy as np

import ops
from tinygrad2.backend import to_device
from tinygrad2.tensor import no_grad


class CachePack:
    """Caches of several texts that go through the model in one pass, their new tokens concatenated into one row.

    lengths[i] tokens belong to text i: a whole prompt, or one new token. All matrix products run over the tokens of all
    texts together; only attention, where each text has its own past, runs text by text. So nothing is padded, and
    nothing needs a mask.
    """

    def __init__(self, caches, lengths):
        self.caches, self.lengths = caches, lengths

    def positions(self, batch, T):
        """Positions of the tokens, (T,). Raises ValueError as KVCache.positions does."""
        if (batch, T) != (1, sum(self.lengths)):
            raise ValueError(f"texts of {self.lengths} tokens make one row of {sum(self.lengths)}, not {batch} of {T}")
        return np.concatenate([cache.positions(1, length) for cache, length in zip(self.caches, self.lengths)])

    def contexts(self, tokens, window):                           # (1, T) integers
        """What TokenCache.contexts returns, text by text, concatenated along T."""
        parts = np.split(tokens, np.cumsum(self.lengths)[:-1], axis=1)
        return np.concatenate([cache.contexts(part, window) for cache, part in zip(self.caches, parts)], axis=1)

    def advance(self, T):
        """The tokens have passed through all layers."""
        for cache, length in zip(self.caches, self.lengths):
            cache.advance(length)

    def layer(self, i):
        """The caches of layer i, one after the other."""
        return _LayerPack([cache.layer(i) for cache in self.caches], self.lengths)


class _LayerPack:
    def __init__(self, layers, lengths):
        self.layers, self.ends = layers, np.cumsum([0, *lengths]).tolist()

    def attend(self, head, q, k, v):                              # each (1, nh, T, hs)
        parts = []
        for layer, start, end in zip(self.layers, self.ends, self.ends[1:]):
            parts.append(layer.attend(head, q[:, :, start:end], k[:, :, start:end], v[:, :, start:end]))
        return parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=2)    # (1, nh, T, hs)


def scores_after(model, caches, tokens):
    """The scores (n, V) of the token that follows each of n texts: a NumPy array, float32.

    tokens    n lists of ids, the new ones of each text, which join its cache
    """
    lengths = [len(new) for new in tokens]
    with no_grad():
        x = model.hidden(np.array([[id for new in tokens for id in new]]), CachePack(caches, lengths))    # (1, T, C)
        logits = model.logits(x[0, to_device(np.cumsum(lengths) - 1, x.device)])
    return logits.numpy().astype(np.float32, copy=False)          # NumPy compares 16-bit numbers slowly
