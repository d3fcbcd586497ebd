"""May a step change the weights? Decided on the GPU. Same rule (tinygrad2/gpu/step_numbers.py); what changes, and why:

- Nothing is read by the host, so that it can start steps whose losses it does not know yet. One launch of one warp,
  where array expressions of the same formulas are eight.
"""

import numpy as np

from ops.kernels.cuda.launch import launch
from tinygrad2 import loss_scale
from tinygrad2.backend import xp_of
from tinygrad2.dispatch import register_kernel


def _are_floats(values, numbers, *others):
    return all(array.dtype.char == "f" and array.flags.c_contiguous for array in (values, numbers))


@register_kernel("decide_step", "cupy", supports=_are_floats)
def decide_step_cuda(values, numbers, max_norm, micro_batches, dynamic):
    """As decide_step of step_numbers.py."""
    bounds = loss_scale.LEAST, loss_scale.MOST, loss_scale.GOOD_STEPS, loss_scale.MOST_SKIPPED
    sizes = np.int32(values.size - 1), np.float32(max_norm), np.float32(micro_batches), np.int32(dynamic)
    args = values, numbers, *sizes, *map(np.float32, bounds)
    launch(xp_of(values), "decide", "decide_step", np.float32, 1, 32, args)
