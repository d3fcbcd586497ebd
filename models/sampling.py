"""Choose the next token from its scores."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    temperature          below 1 sharpens, above 1 flattens the distribution; 0: always the likeliest
    top_k                only the k likeliest may be drawn; 0 means all. Equals of the k-th stay in
    top_p                only the likeliest that together make up at least this probability ("nucleus"); 1 means all
    min_p                only those at least this share as likely as the likeliest; 0 means all
    repetition_penalty   above 1: scores of tokens that are in the text already shrink by this factor (those below
                         zero grow), so that it does not go round in circles

    Holtzman et al., "The curious case of neural text degeneration", ICLR 2020 (top_p); Nguyen et al., "Turning up the
    heat: min-p sampling", ICLR 2025 (min_p); Keskar et al., "CTRL", 2019, section 4.1 (repetition_penalty).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


def sample(logits, rng=None, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, seen=()):
    """Draw one id from softmax(logits / temperature), (V,) -> int. Without rng, or at temperature 0: the likeliest.

    The knobs are those of Sampling, applied in the order penalty, temperature, top_k, top_p, min_p; `seen` holds the
    ids of the text so far. Computed in float64 on the host, so that the same seed gives the same text whatever made
    the logits.
    """
    if repetition_penalty != 1 and len(seen):
        ids = np.unique([id for id in seen if id < logits.size])
        logits = logits.copy()
        logits[ids] = np.where(logits[ids] > 0, logits[ids] / repetition_penalty, logits[ids] * repetition_penalty)
    if rng is None or temperature == 0:
        return int(np.argmax(logits))
    logits = logits.astype(np.float64) / temperature              # (V,)
    if 0 < top_k < logits.size:
        smallest = np.partition(logits, -top_k)[-top_k]
        logits = np.where(logits < smallest, -np.inf, logits)
    p = np.exp(logits - logits.max())
    p /= p.sum()                                                  # (V,)
    if top_p < 1:
        p = _nucleus(p, top_p)
    if min_p > 0:
        p = np.where(p < min_p * p.max(), 0, p)
    p /= p.sum()
    return min(int(np.searchsorted(np.cumsum(p), rng.random(), side="right")), int(np.flatnonzero(p)[-1]))


def _nucleus(p, top_p):
    """Zero but for the likeliest, as few as make up top_p."""
    large = np.flatnonzero(p >= (1 - top_p) / p.size)             # all others together have less than 1 - top_p:
    order = large[np.argsort(-p[large], kind="stable")]           # no need to sort them
    before = np.cumsum(p[order]) - p[order]                       # probability of all that are likelier
    keep = order[before < top_p]                                  # the first one always stays: nothing is before it
    out = np.zeros_like(p)
    out[keep] = p[keep]
    return out


def log_probability(logits, id):
    """ln of what softmax(logits) gives an id: how expected it was, before any knob. logits (V,)."""
    logits = logits.astype(np.float64)
    top = logits.max()
    return float(logits[id] - top - np.log(np.exp(logits - top).sum()))
