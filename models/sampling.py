"""Choose the next token from its scores."""

from dataclasses import dataclass

import numpy as np

from tinygrad2.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    temperature          below 1 sharpens, above 1 flattens the distribution; 0: always the likeliest
    top_k                only the k likeliest may be drawn; 0 means all. Equals of the k-th stay in
    top_p                only the likeliest, as few as together make up this probability ("nucleus"); 1 means all
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
    the logits. Raises UserError where these are of no use: nan, infinite, or all of them -inf.
    """
    if repetition_penalty != 1 and len(seen):
        logits = _penalized(logits, np.asarray(seen), repetition_penalty)
    likeliest = int(np.argmax(logits))                            # the first nan, where there is one
    if not np.isfinite(logits[likeliest]):
        raise UserError("the model's scores for the next token are nan or infinite; its weights are broken")
    if rng is None or temperature == 0:
        return likeliest
    p = _softmax(logits, likeliest, temperature, top_k)           # (V,)
    if top_p < 1:
        p = _nucleus(p, top_p)
    if min_p > 0:
        p = np.where(p < min_p * p.max(), 0, p)
    p /= p.sum()
    return min(int(np.searchsorted(np.cumsum(p), rng.random(), side="right")), int(np.flatnonzero(p)[-1]))


def _penalized(logits, seen, penalty):
    """A copy in which the scores of the ids in `seen` are smaller: divided by the penalty, below zero multiplied."""
    logits, ids = logits.copy(), seen[seen < logits.size]         # an id that comes twice is written twice the same
    logits[ids] = np.where(logits[ids] > 0, logits[ids] / penalty, logits[ids] * penalty)
    return logits


def _softmax(logits, likeliest, temperature, top_k):
    """softmax(logits / temperature) in float64, zero but for the top_k largest and their equals."""
    out = np.exp(_over(logits.astype(np.float64) - logits[likeliest], temperature))
    if 0 < top_k < logits.size:
        out[logits < np.partition(logits, -top_k)[-top_k]] = 0    # the k-th largest
    return out / out.sum()


def _over(x, temperature):
    """x / temperature for x <= 0; where the temperature is tiny that is -inf, and no mistake."""
    with np.errstate(over="ignore"):
        return x / temperature


def _nucleus(p, top_p):
    """Zero but for the likeliest, as few as make up top_p; of equals the ones with smaller ids."""
    large = p[p >= (1 - top_p) / p.size]                          # all others together have less than 1 - top_p:
    large = -np.sort(-large)                                      # no need to sort them
    before = np.cumsum(large) - large                             # probability of all that are likelier
    n = max(1, np.count_nonzero(before < top_p))                  # so many stay
    keep = p > large[n - 1]
    keep[np.flatnonzero(p == large[n - 1])[: n - np.count_nonzero(keep)]] = True
    return np.where(keep, p, 0)


def log_probability(logits, id):
    """ln of what softmax(logits) gives an id: how expected it was, before any knob. logits (V,)."""
    logits = logits.astype(np.float64)
    top = logits.max()
    return float(logits[id] - top - np.log(np.exp(logits - top).sum()))
