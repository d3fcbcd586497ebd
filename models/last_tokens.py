"""What a model without attention needs of the tokens before: the last k of them, at every position."""

import numpy as np

from tinygrad2.backend import xp_of


def last_tokens(ids, T, k, nothing):
    """At each of the last T positions of `ids` (B, n): the k ids up to it, (B, T, k), the newest one last.

    nothing    the id that stands before the first token

        last_tokens([[5, 6, 7]], 3, 2, nothing=9) -> [[[9, 5], [5, 6], [6, 7]]]
    """
    xp, B = xp_of(ids), len(ids)
    ids = ids[:, max(0, ids.shape[1] - T - k + 1) :]              # what is looked at
    padded = xp.concatenate((xp.full((B, k - 1), nothing, ids.dtype), ids), 1)   # (B, n), n >= k - 1 + T
    first = padded.shape[1] - (k - 1 + T)
    return xp.stack([padded[:, first + i : first + i + T] for i in range(k)], -1)     # (B, T, k)


class TokenCache:
    """The ids of the tokens so far: takes the role of a KVCache in a model without attention. It never fills up, as
    these models have no positions.

        ids    (B, position) integers
        size   how many tokens of a long prompt are looked at
    """

    full = False

    def __init__(self, batch, size):
        self.ids, self.size = np.zeros((batch, 0), np.int64), size

    @property
    def position(self):
        return self.ids.shape[1]

    def copy_from(self, other, position):
        """Take over the first `position` tokens of another cache."""
        self.ids = other.ids[:, :position]

    def contexts(self, tokens, window):                           # (B, T) integers
        """Add the tokens; returns window(all ids so far, T), such as last_tokens. Raises ValueError for another number
        of sequences than the cache has."""
        if len(tokens) != len(self.ids):
            raise ValueError(f"the cache is for {len(self.ids)} sequence(s), not {len(tokens)}")
        self.ids = np.concatenate((self.ids, tokens), axis=1)
        return window(self.ids, tokens.shape[1])
