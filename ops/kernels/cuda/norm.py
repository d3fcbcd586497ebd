"""The norm of the gradient on the GPU. Same blocks (tinygrad2/optim.py); what changes, and why:

- The gradient is read once, 4 bytes a parameter; the reference squares it into a second array and reads that, 12 bytes.
- A block of threads sums the squares of NORM_BLOCK elements: at most 64 in float32 in each thread, all else in float64.
  A second launch, of one block, adds the sums and takes the root. No atomic additions: the same bits in every run, and
  for ranks that have a part of the gradient each.
"""

import numpy as np

from ops.kernels.cuda.launch import launch, wide
from tinygrad2.backend import xp_of
from tinygrad2.dispatch import register_kernel
from tinygrad2.optim import NORM_BLOCK


def _is_flat(grad):
    return grad.dtype.char == "f" and grad.ndim == 1 and grad.flags.c_contiguous


@register_kernel("block_square_sums", "cupy", supports=_is_flat)
def block_square_sums_cuda(grad):
    """As block_square_sums of optim.py."""
    xp, n = xp_of(grad), grad.size
    sums = xp.empty(-(-n // NORM_BLOCK), np.float64)
    if n:
        args = grad, sums, np.int64(n), wide(NORM_BLOCK, grad)
        launch(xp, "norm", "square_sums", np.float32, sums.size, 1024, args)
    return sums


@register_kernel("norm_of", "cupy", supports=lambda sums, dtype: sums.dtype == np.float64 and dtype == np.float32)
def norm_of_cuda(sums, dtype):
    """As norm_of of optim.py."""
    xp = xp_of(sums)
    norm = xp.empty((), dtype)
    launch(xp, "norm", "norm_of", np.float32, 1, 1024, (xp.ascontiguousarray(sums), norm, np.int32(sums.size)))
    return norm
