"""Casts between float32 and 16 bits on the GPU. Same values as NumPy's; what changes, and why:

- 8 elements a thread, by 16 bytes: 6 bytes an element are moved, as by CuPy's astype, in a quarter of the accesses or
  fewer. The copies of the weights are cast by it (tinygrad2/halves.py), and what kernels get in another dtype.
"""

import numpy as np

from ops.kernels.cuda.elements import launch_elements
from ops.kernels.cuda.launch import result_dtype
from tinygrad2.backend import xp_of
from tinygrad2.dispatch import register_kernel
from tinygrad2.halves import is_half


def _fits(values, out):
    is_flat = values.flags.c_contiguous and out.flags.c_contiguous and values.shape == out.shape
    return values.dtype == np.float32 and is_half(out.dtype) and is_flat


@register_kernel("cast_to_half", "cupy", supports=_fits)
def cast_to_half(values, out):
    """Round float32 values to nearest, ties to even, into `out`, float16 or bfloat16."""
    launch_elements(xp_of(values), "cast", "cast_to_half", out.dtype, (values, out))


def cast(xp, x, dtype):
    """x (...) contiguous and in another dtype, float32, float16 or bfloat16; x itself where it is both already."""
    dtype = np.dtype(dtype)
    if x.dtype == dtype and x.flags.c_contiguous:
        return x
    values, out = xp.ascontiguousarray(x), xp.empty(x.shape, dtype)
    if values.dtype == np.float32 and is_half(dtype):
        launch_elements(xp, "cast", "cast_to_half", dtype, (values, out))
    elif is_half(values.dtype) and dtype == np.float32:
        launch_elements(xp, "cast", "cast_to_float", values.dtype, (values, out))
    else:
        out[...] = x
    return out


def activation(op, x):
    """x contiguous, and in the dtype of activations: 16-bit arrays as they are, float32 in that of `op`'s precision."""
    return cast(op.xp, x, x.dtype if is_half(x.dtype) else result_dtype(op))
