"""Weights in fewer bits for inference: the matrices of a trained GPT as int8 or bfloat16, read in less time."""

import numpy as np

import ops
from models.decode_block import Weights
from ops.linear_int8 import quantize_rows
from tinygrad2.backend import large_zeros, xp_of
from tinygrad2.bfloat16 import pack_bfloat16
from tinygrad2.module import Module

_ALIGN = 64  # weights: each matrix starts on a 64-byte boundary


class LinearInt8(Module):
    """Replaces a Linear: weights rounded to 8 bits row by row (ops/linear_int8.py). It has no Parameters: nothing here
    is learned.

    place    a function that moves the array of weights to where it is to be, and returns it
    """

    dtype = np.int8

    def __init__(self, rows, bias=None, place=lambda weights: weights):   # array (O, I), bias Parameter (O,) or None
        q, self.scale = quantize_rows(xp_of(rows), rows)
        self.q = place(q)
        self.bias = None if bias is None else bias.data.copy()    # a view would keep all float weights alive

    def forward(self, x):                                         # (..., I)
        return ops.linear_int8(x, self.q, self.scale, self.bias)  # (..., O)

    def arrays(self):
        return Weights(self.q, self.scale, self.bias, len(self.q))


class LinearBfloat16(Module):
    """Replaces a Linear: weights rounded to bfloat16 (ops/linear_bfloat16.py). `place` as above."""

    dtype = np.uint16

    def __init__(self, rows, bias=None, place=lambda weights: weights):   # array (O, I), bias Parameter (O,) or None
        self.weight = place(pack_bfloat16(xp_of(rows).ascontiguousarray(rows)))
        self.bias = None if bias is None else bias.data.copy()

    def forward(self, x):                                         # (..., I)
        return ops.linear_bfloat16(x, self.weight, self.bias)     # (..., O)

    def arrays(self):
        return Weights(self.weight, None, self.bias, len(self.weight))


class SmallMLP(Module):
    """Replaces an MLP. `linear` makes the module that replaces a Linear."""

    def __init__(self, mlp, linear):
        self.c_fc, self.c_proj = linear(mlp.c_fc), linear(mlp.c_proj)
        self.exact = mlp.exact

    def forward(self, x):                                         # (B, T, C)
        gelu = ops.gelu_erf if self.exact else ops.gelu
        return self.c_proj(gelu(self.c_fc(x)))                    # (B, T, C)


class _Memory:
    """One array for all weights: that is large enough for pages of 2 MB (tinygrad2/system/huge_pages.py), from which
    they are read faster, and most matrices are not."""

    def __init__(self, xp, sizes, dtype):
        self.array = large_zeros(xp, sum(-(-size // _ALIGN) * _ALIGN for size in sizes), dtype)
        self.end = 0

    def place(self, weights):
        """A copy of them behind those that are here already."""
        start, self.end = self.end, self.end + -(-weights.size // _ALIGN) * _ALIGN
        place = self.array[start : start + weights.size].reshape(weights.shape)
        place[...] = weights
        return place


def quantize(model, linear=LinearInt8):
    """Change a GPT in evaluation mode, in place: all matrices of its blocks, and its head, become `linear`, one of the
    classes above. Returns the model.

    The embeddings stay float32: only the rows of the current tokens are read.
    """
    head = model.wte.weight.data if model.lm_head is None else model.lm_head.weight.data.T
    sizes = [part.weight.size for block in model.h for part in _linears(block)]
    place = _Memory(xp_of(head), [*sizes, head.size], linear.dtype).place

    def replace(part):
        return linear(part.weight.data.T, part.bias, place)

    for block in model.h:
        attn = block.attn
        attn.c_attn, attn.c_proj, block.mlp = replace(attn.c_attn), replace(attn.c_proj), SmallMLP(block.mlp, replace)
    model.lm_head = linear(head, place=place)
    for parameter in model.parameters():
        parameter.data = parameter.data.copy()                    # a view of the flat buffer would keep all of it
    return model


def _linears(block):
    return block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj
