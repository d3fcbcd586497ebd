"""Sums over the rows of a matrix on the GPU: the gradients of biases and of layernorm's parameters.

- Partial sums in a fixed order and a second kernel instead of atomic additions: the same bits in every run.
- The second kernel writes, or adds, straight into the parameter's gradient.
"""

import numpy as np

from ops.kernels.cuda.launch import launch
from tinygrad2.function import DeferredGradient


def sum_of_partials(xp, partial):
    """The DeferredGradient (C,) that is partial (n, C), float32, summed over n. Its rows may be apart."""

    def write_to(out, accumulate):
        n, C = partial.shape
        sizes = map(np.int32, (n, C, partial.strides[0] // 4, accumulate))
        launch(xp, "column_sums", "sum_rows", "float32", -(-C // 32), 1024, (partial, out, *sizes))

    return DeferredGradient(xp, partial.shape[1:], partial.dtype, write_to)
