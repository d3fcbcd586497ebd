"""Sums over the rows of a matrix on the GPU: the gradients of biases and of layernorm's parameters.

- Partial sums in a fixed order and a second kernel instead of atomic additions: the same bits in every run, on every
  GPU: how rows are divided into blocks depends on the shape alone.
- The matrix is read once, 16 bytes a thread, with sums in float32: 2 bytes an element in 16 bits. The sums of the
  blocks are less than a hundredth of it from some ten thousand rows on.
- The second kernel writes, or adds, straight into the parameter's gradient.
"""

import numpy as np

from ops.kernels.cuda.launch import launch, wide
from tinygrad2.deferred import DeferredGradient

_BLOCKS, _LEAST_ROWS = 1056, 32                                   # blocks, about; rows of one, at least


def bias_gradient(xp, dout):
    """The DeferredGradient (C,), float32, that is the sum over the rows of dout (N, C): float32, float16 or bfloat16.
    dout is read here, not when the gradient is written."""
    dout = xp.ascontiguousarray(dout)
    N, C = dout.shape
    by_16_bytes = wide(C, dout)
    groups = -(-C // (256 if by_16_bytes else 32))                # of columns, a block each
    rows = max(_LEAST_ROWS, -(-N * groups // _BLOCKS), -(-N // 65535))
    blocks = max(1, -(-N // rows))
    partial = xp.empty((blocks, C), np.float32)
    sizes = np.int32(N), np.int32(C), np.int32(rows), by_16_bytes
    launch(xp, "column_sums", "sum_blocks_of_rows", dout.dtype, (groups, blocks), 256, (dout, partial, *sizes))
    return sum_of_partials(xp, partial)


def sum_of_partials(xp, partial):
    """The DeferredGradient (C,) that is partial (n, C), float32, summed over n. Its rows may be apart."""

    def write_to(out, accumulate):
        n, C = partial.shape
        sizes = map(np.int32, (n, C, partial.strides[0] // 4, accumulate))
        launch(xp, "column_sums", "sum_rows", "float32", -(-C // 32), 1024, (partial, out, *sizes))

    return DeferredGradient(xp, partial.shape[1:], partial.dtype, write_to)
