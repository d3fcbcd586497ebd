"""Attention of one query per head: a text that is generated, one token each time. Nothing is masked: it sees all keys.

A key is read once for its score, a value once for the sum, as they are in memory. BLAS took longer to begin its
products of one row than to compute them. Values are added in blocks of 64, which keeps rounding errors as small as
BLAS's.
"""

import math

import numpy as np

from ops.kernels.cpu.attention_gemm import row_of_head
from ops.kernels.cpu.fast_math import exp32, max32
from ops.kernels.cpu.numba_jit import helper, jit
from ops.kernels.cpu.spread import spread
from tinygrad2.system.threads import POOL

_GRAIN = 1 << 14                                                  # numbers of k in a part, at least
_BLOCK = 64                                                       # values that are added apart
_ZERO = np.float32(0)


def attend(q, k, v, out, logsum):
    """out = softmax(q kT / sqrt(hs)) v and logsum, ln of the sum of e^scores: float32 (B, nh, 1, hs), twice
    (B, nh, Tk, hs), (B, nh, 1, hs), (B, nh, 1)."""
    B, nh, Tk, hs = k.shape
    scale = np.float32(1 / math.sqrt(hs))
    POOL.split(_attend, B * nh, q, k, v, out, logsum.reshape(-1), scale, grain=1 + _GRAIN // (Tk * hs))


@jit
def _attend(lo, hi, q, k, v, out, logsum, scale):
    if spread(lo, hi):
        return
    nh, Tk, hs = k.shape[1:]
    scores, part, query = np.empty(Tk, np.float32), np.empty(hs, np.float32), np.empty(hs, np.float32)
    for head in range(lo, hi):
        b, h = head // nh, head % nh
        row = row_of_head(q, b, h, 0)
        for i in range(query.size):
            query[i] = scale * row[i]
        logsum[head] = one_query(query, k, v, b, h, scores, part, row_of_head(out, b, h, 0))


@helper
def one_query(query, k, v, b, h, scores, part, out):
    """out (hs,) = softmax(query kT) v for the first `scores.size` keys of head h; returns ln of the sum of e^scores.

    scores, part    work space, as many as keys and hs
    """
    for t in range(scores.size):
        key, total = row_of_head(k, b, h, t), _ZERO
        for i in range(key.size):
            total += query[i] * key[i]
        scores[t] = total
    logsum = _softmax(scores)
    out[:] = 0
    for start in range(0, scores.size, _BLOCK):
        part[:] = 0
        _add_values(scores, v, b, h, start, min(scores.size, start + _BLOCK), part)
        for i in range(part.size):
            out[i] += part[i]
    return logsum


@helper
def _softmax(scores):
    """In place: scores become weights. Returns ln(sum of e^scores)."""
    largest = scores[0]
    for t in range(scores.size):
        largest = max32(largest, scores[t])
    total = _ZERO
    for t in range(scores.size):
        e = exp32(scores[t] - largest)
        scores[t] = e
        total += e
    factor = np.float32(1) / total
    for t in range(scores.size):
        scores[t] *= factor
    return largest + np.float32(math.log(total))


@helper
def _add_values(weights, v, b, h, start, stop, out):
    """Add values start .. stop - 1 of a head, each by its weight, four at a time."""
    full = stop - (stop - start) % 4
    for t in range(start, full, 4):
        w0, w1, w2, w3 = weights[t], weights[t + 1], weights[t + 2], weights[t + 3]
        v0, v1 = row_of_head(v, b, h, t), row_of_head(v, b, h, t + 1)
        v2, v3 = row_of_head(v, b, h, t + 2), row_of_head(v, b, h, t + 3)
        for i in range(out.size):
            out[i] += w0 * v0[i] + w1 * v1[i] + w2 * v2[i] + w3 * v3[i]
    for t in range(full, stop):
        value = row_of_head(v, b, h, t)
        for i in range(out.size):
            out[i] += weights[t] * value[i]
