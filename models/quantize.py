"""Weight-only int8 for inference: the matrices of a trained GPT, rounded to 8 bits row by row (ops/linear_int8.py)."""

import ops
from ops.linear_int8 import quantize_rows
from tinygrad2.backend import xp_of
from tinygrad2.module import Module


class LinearInt8(Module):
    """Replaces a Linear. It has no Parameters: nothing here is learned."""

    def __init__(self, rows, bias=None):                          # array (O, I), bias Parameter (O,) or None
        self.q, self.scale = quantize_rows(xp_of(rows), rows)
        self.bias = None if bias is None else bias.data.copy()    # a view would keep all float weights alive

    def forward(self, x):                                         # (..., I)
        return ops.linear_int8(x, self.q, self.scale, self.bias)  # (..., O)


class MLPInt8(Module):
    """Replaces an MLP."""

    def __init__(self, mlp):
        self.c_fc = LinearInt8(mlp.c_fc.weight.data.T, mlp.c_fc.bias)
        self.c_proj = LinearInt8(mlp.c_proj.weight.data.T, mlp.c_proj.bias)
        self.gelu = ops.gelu_erf if mlp.exact else ops.gelu

    def forward(self, x):                                         # (B, T, C)
        return self.c_proj(self.gelu(self.c_fc(x)))               # (B, T, C)


def quantize(model):
    """Change a GPT in evaluation mode to int8, in place: all matrices of its blocks, and its head. Returns the model.

    The embeddings stay float32: only the rows of the current tokens are read.
    """
    for block in model.h:
        for name in ("c_attn", "c_proj"):
            linear = getattr(block.attn, name)
            setattr(block.attn, name, LinearInt8(linear.weight.data.T, linear.bias))
        block.mlp = MLPInt8(block.mlp)
    model.lm_head = LinearInt8(model.wte.weight.data if model.lm_head is None else model.lm_head.weight.data.T)
    return model
