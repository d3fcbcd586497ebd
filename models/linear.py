import numpy as np

import ops
from models.decode_block import Weights
from tinygrad2.module import Module, Parameter


class Linear(Module):
    """A learned affine map of the last axis: x weight + bias (ops/linear.py). The weight is stored (in, out)."""

    def __init__(self, n_in, n_out, bias=True):
        self.weight = Parameter(np.zeros((n_in, n_out), np.float32))
        self.bias = Parameter(np.zeros(n_out, np.float32)) if bias else None

    def forward(self, x):                                         # (..., n_in)
        return ops.linear(x, self.weight, self.bias)              # (..., n_out)

    def arrays(self):
        """Its Weights, for decode_block.py."""
        return Weights(self.weight.data, None, None if self.bias is None else self.bias.data, self.weight.shape[1])
