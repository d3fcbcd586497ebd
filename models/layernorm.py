import numpy as np

import ops
from tinygrad2.module import Module, Parameter


class LayerNorm(Module):
    """Normalise each token's channels, then scale and shift them (ops/layernorm.py)."""

    def __init__(self, n_embd, bias=True, eps=1e-5):
        self.eps = eps
        self.weight = Parameter(np.ones(n_embd, np.float32))
        self.bias = Parameter(np.zeros(n_embd, np.float32)) if bias else None

    def forward(self, x):                                         # (..., C)
        return ops.layernorm(x, self.weight, self.bias, self.eps)  # (..., C)

    def arrays(self):
        """(weight, bias or None, epsilon), for decode_block.py."""
        return self.weight.data, None if self.bias is None else self.bias.data, self.eps
