"""Choose the next token from its scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from tinygrad2.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    temperature          below 1 sharpens, above 1 flattens the distribution; 0: always the most likely token
    top_k                only the k most likely may be drawn, and those that tie with the k-th; 0 means all
    top_p                only the most likely, the fewest with this total probability ("nucleus"); 1 means all
    min_p                only those with at least this fraction of the highest probability; 0 means all
    repetition_penalty   above 1: positive scores of tokens that are in the text already are divided by it, negative
                         ones multiplied, so that the text does not repeat itself

    Holtzman et al., "The curious case of neural text degeneration", ICLR 2020 (top_p); Nguyen et al., "Turning up the
    heat: min-p sampling", ICLR 2025 (min_p); Keskar et al., "CTRL", 2019, section 4.1 (repetition_penalty).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


def sample(logits: np.ndarray, rng: Generator | None = None, temperature: float = 1.0, top_k: int = 0,
           top_p: float = 1.0, min_p: float = 0.0, repetition_penalty: float = 1.0,
           seen: Sequence[int] = ()) -> int:  # fmt: skip
    """Draw one id from softmax(logits / temperature), (V,) -> int. Without rng, or at temperature 0: the most likely.

    The knobs are those of Sampling, applied in the order penalty, temperature, top_k, top_p, min_p; `seen` holds the
    ids of the text so far. Computed in float64 on the host, so that the same seed draws the same text whichever device
    computed the logits. Raises UserError if the largest logit is NaN or infinite.
    """
    if repetition_penalty != 1 and len(seen):
        logits = _penalized(logits, np.asarray(seen), repetition_penalty)
    most_likely = int(np.argmax(logits))                          # the first NaN, if there is one
    if not np.isfinite(logits[most_likely]):
        raise UserError("the model's scores for the next token are nan or infinite; its weights are damaged")
    if rng is None or temperature == 0:
        return most_likely
    p = _softmax(logits, most_likely, temperature, top_k)         # (V,)
    if top_p < 1:
        p = _nucleus(p, top_p)
    if min_p > 0:
        p = np.where(p < min_p * p.max(), 0, p)
    p /= p.sum()
    return min(int(np.searchsorted(np.cumsum(p), rng.random(), side="right")), int(np.flatnonzero(p)[-1]))


def _penalized(logits, seen, penalty):
    """A copy in which the scores of the ids in `seen` are divided by the penalty, or multiplied if negative."""
    logits, ids = logits.copy(), seen[seen < logits.size]         # repeated ids are harmless: same value twice
    logits[ids] = np.where(logits[ids] > 0, logits[ids] / penalty, logits[ids] * penalty)
    return logits


def _softmax(logits, most_likely, temperature, top_k):
    """softmax(logits / temperature) in float64, zero except the top_k largest and those that tie with the last."""
    out = np.exp(_over(logits.astype(np.float64) - logits[most_likely], temperature))
    if 0 < top_k < logits.size:
        out[logits < np.partition(logits, -top_k)[-top_k]] = 0    # the k-th largest
    return out / out.sum()


def _over(x, temperature):
    """x / temperature for x <= 0; for a tiny temperature that is -inf, as it should be."""
    with np.errstate(over="ignore"):
        return x / temperature


def _nucleus(p, top_p):
    """p, zero except the fewest most likely ids with a total of at least top_p; of ties, the smaller ids."""
    large = p[p >= (1 - top_p) / p.size]                          # the others have less than 1 - top_p in total:
    large = -np.sort(-large)                                      # no need to sort those
    before = np.cumsum(large) - large                             # total probability of those that are more likely
    n = max(1, np.count_nonzero(before < top_p))                  # number of ids that stay
    keep = p > large[n - 1]
    keep[np.flatnonzero(p == large[n - 1])[: n - np.count_nonzero(keep)]] = True
    return np.where(keep, p, 0)


def log_probability(logits: np.ndarray, id: int) -> float:
    """ln softmax(logits)[id], in float64: how expected the id was, before any knob. logits (V,)."""
    logits = logits.astype(np.float64)
    top = logits.max()
    return float(logits[id] - top - np.log(np.exp(logits - top).sum()))
