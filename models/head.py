import math

import ops
from models.dropout import Dropout
from tinygrad2.module import Module


class Head(Module):
    """Causal attention of one head: softmax(q kT / sqrt(hs) + mask) v (ops/attention.py). It has no parameters.

    Axes in front of (T, hs) are batches, so the same Head serves all heads of a layer at once.
    """

    def __init__(self, dropout=0.0):
        self.attn_dropout = Dropout(dropout)

    def forward(self, q, k, v):                                   # q (..., Tq, hs); k, v (..., Tk, hs)
        weights = math.prod(q.shape[1:-1]) * k.shape[-2]          # of one sequence, all its heads
        return ops.attention(q, k, v, *self.attn_dropout.inside(weights))   # (..., Tq, hs)
