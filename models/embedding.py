import numpy as np

import ops
from tinygrad2.module import Module, Parameter


class Embedding(Module):
    """A table with one learned row per id (ops/embedding.py): of the tokens (wte) or of the positions (wpe)."""

    def __init__(self, n_rows, n_embd):
        self.weight = Parameter(np.zeros((n_rows, n_embd), np.float32))

    def forward(self, ids):                                       # (...) integers
        return ops.embedding(self.weight, ids)                    # (..., C)
