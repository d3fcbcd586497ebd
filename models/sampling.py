"""Choose the next token from its scores."""

import numpy as np


def sample(logits, rng=None, temperature=1.0, top_k=0, top_p=1.0):
    """Draw one id from softmax(logits / temperature), (V,) -> int. Without rng, or at temperature 0: the likeliest.

    temperature   below 1 sharpens, above 1 flattens the distribution
    top_k         only the k likeliest may be drawn; 0 means all. Equals of the k-th stay in
    top_p         only the likeliest that together make up at least this probability ("nucleus"); 1 means all

    Computed in float64 on the host, so that the same seed gives the same text whatever made the logits.
    Holtzman et al., "The curious case of neural text degeneration", ICLR 2020 (top_p).
    """
    if rng is None or temperature == 0:
        return int(np.argmax(logits))
    logits = logits.astype(np.float64) / temperature                # (V,)
    if 0 < top_k < logits.size:
        smallest = np.partition(logits, -top_k)[-top_k]
        logits = np.where(logits < smallest, -np.inf, logits)
    p = np.exp(logits - logits.max())
    p /= p.sum()                                                  # (V,)
    if top_p < 1:
        order = np.argsort(-p, kind="stable")                     # likeliest first
        before = np.cumsum(p[order]) - p[order]                   # probability of all that are likelier
        p[order[before >= top_p]] = 0                             # the first one always stays: nothing is before it
        p /= p.sum()
    return min(int(np.searchsorted(np.cumsum(p), rng.random(), side="right")), int(np.flatnonzero(p)[-1]))
