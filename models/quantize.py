"""Weights in fewer bits for inference: the matrices of a trained GPT as int8 or bfloat16, read in less time."""

import ops
from ops.linear_int8 import quantize_rows
from tinygrad2.backend import xp_of
from tinygrad2.bfloat16 import pack_bfloat16
from tinygrad2.module import Module


class LinearInt8(Module):
    """Replaces a Linear: weights rounded to 8 bits row by row (ops/linear_int8.py). It has no Parameters: nothing here
    is learned."""

    def __init__(self, rows, bias=None):                          # array (O, I), bias Parameter (O,) or None
        self.q, self.scale = quantize_rows(xp_of(rows), rows)
        self.bias = None if bias is None else bias.data.copy()    # a view would keep all float weights alive

    def forward(self, x):                                         # (..., I)
        return ops.linear_int8(x, self.q, self.scale, self.bias)  # (..., O)


class LinearBfloat16(Module):
    """Replaces a Linear: weights rounded to bfloat16 (ops/linear_bfloat16.py)."""

    def __init__(self, rows, bias=None):                          # array (O, I), bias Parameter (O,) or None
        self.weight = pack_bfloat16(xp_of(rows).ascontiguousarray(rows))
        self.bias = None if bias is None else bias.data.copy()

    def forward(self, x):                                         # (..., I)
        return ops.linear_bfloat16(x, self.weight, self.bias)     # (..., O)


class SmallMLP(Module):
    """Replaces an MLP, its matrices of one of the classes above."""

    def __init__(self, mlp, linear):
        self.c_fc = linear(mlp.c_fc.weight.data.T, mlp.c_fc.bias)
        self.c_proj = linear(mlp.c_proj.weight.data.T, mlp.c_proj.bias)
        self.gelu = ops.gelu_erf if mlp.exact else ops.gelu

    def forward(self, x):                                         # (B, T, C)
        return self.c_proj(self.gelu(self.c_fc(x)))               # (B, T, C)


def quantize(model, linear=LinearInt8):
    """Change a GPT in evaluation mode, in place: all matrices of its blocks, and its head, become `linear`, one of the
    classes above. Returns the model.

    The embeddings stay float32: only the rows of the current tokens are read.
    """
    for block in model.h:
        for name in ("c_attn", "c_proj"):
            replaced = getattr(block.attn, name)
            setattr(block.attn, name, linear(replaced.weight.data.T, replaced.bias))
        block.mlp = SmallMLP(block.mlp, linear)
    model.lm_head = linear(model.wte.weight.data if model.lm_head is None else model.lm_head.weight.data.T)
    return model
