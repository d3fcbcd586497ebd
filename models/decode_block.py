"""A new token of a text goes through a block: in one call, where there is a kernel for it.

Writing a text sends one row at a time through the model. Each op then computes for a few microseconds, and calling
nine to eleven of them takes longer than what they compute. The kernel (ops/kernels/cpu/decode_block.py) is the whole
block; the block's own forward (models/block.py) says what it must return.
"""

from typing import Any, NamedTuple

from tinygrad2.backend import xp_of
from tinygrad2.dispatch import fast_version
from tinygrad2.function import observers
from tinygrad2.precision import ROUNDED, precision
from tinygrad2.tensor import Tensor, is_recording


class Weights(NamedTuple):
    """The arrays of a linear map with O outputs: its weight as the module keeps it, the scale (O,) of int8,
    bias (O,). What it lacks is None."""

    weight: Any
    scale: Any
    bias: Any
    outputs: int


def decode_block(block, x, cache):                                # Tensor (B, T, C); a layer of a KVCache or CachePack
    """x after the block, (1, 1, C), with k and v in the cache. None if there is no kernel for it, it is more than one
    token, gradients or dropout are wanted, or somebody observes the ops: forward of the block then computes it."""
    layers = getattr(cache, "layers", ())                         # what is no cache of texts has none
    attn, mlp = block.attn, block.mlp
    drops = block.training and attn.resid_dropout.p > 0
    if len(layers) != 1 or x.shape[:2] != (1, 1) or drops or is_recording() or observers():
        return None
    norms = [norm.arrays() for norm in (block.ln_1, block.ln_2)]
    linears = [part.arrays() for part in (attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj)]
    (layer,) = layers
    args = (x.data, norms, linears, layer.k, layer.v, layer.cache.position, mlp.exact, precision() == ROUNDED)
    kernel = fast_version("decode_block", xp_of(x.data), *args)
    return None if kernel is None else Tensor(kernel(*args))
