"""AdamW on the GPU. Same formulas (tinygrad2/optim.py); what changes, and why:

- One launch: p, g, m and v are read once, p, m and v written once, 28 bytes a parameter. The reference's 17 operators
  move 172. The factor of clipping, of the mean over micro-batches and of the loss scale is multiplied in on the way; it
  may be an array of the GPU, so the host need not know it.
- In mixed precision the 16-bit copy of the weights (tinygrad2/halves.py) is written in the same pass: 2 bytes more,
  where a cast afterwards would read 4 and write 2.
- If the factor is not a number, nothing changes: steps can be started before the host has seen the norm of the last one
  (tinygrad2/training/lookahead.py).
- Factor, learning rate and step count are arguments of the launch, or are read on the GPU
  (tinygrad2/gpu/step_numbers.py), as a CUDA graph of a step needs it: it repeats launches with the same arguments.
"""

import numpy as np

from ops.kernels.cuda.elements import launch_elements
from tinygrad2.backend import xp_of
from tinygrad2.dispatch import register_kernel


def _are_flat(p, g, m, v, *others):
    return all(map(_is_flat, (p, g, m, v)))


def _is_flat(array):
    return array.dtype.char == "f" and array.ndim == 1 and array.flags.c_contiguous


@register_kernel("adam_update", "cupy", supports=_are_flat)
def adam_update_cuda(p, g, m, v, grad_scale, t, lr, beta1, beta2, eps, weight_decay, half=None):
    """As adam_update of optim.py."""
    scale, factor = None, grad_scale
    if isinstance(grad_scale, type(p)):
        scale, factor = grad_scale.astype(np.float32, copy=False), 1.0
    constants = (
        factor,
        lr,
        1 - beta1,
        1 - beta2,
        1 / (1 - beta1**t),
        1 / (1 - beta2**t),
        eps,
        weight_decay,
    )
    _launch((p, g, m, v, half), scale, constants, None, None, 0, 0)


@register_kernel("adam_update_by_numbers", "cupy", supports=_are_flat)
def adam_update_by_numbers_cuda(
    p, g, m, v, numbers, corrections, missed, beta1, beta2, eps, weight_decay, half=None
):  # fmt: skip
    """As adam_update_by_numbers of step_numbers.py."""
    unused = 0
    constants = (
        unused,
        unused,
        1 - beta1,
        1 - beta2,
        unused,
        unused,
        eps,
        weight_decay,
    )
    last = len(corrections) - 1
    _launch((p, g, m, v, half), None, constants, numbers, corrections, missed, last)


def _launch(arrays, scale, constants, numbers, corrections, missed, last):
    half = arrays[-1]
    dtype = np.float32 if half is None else half.dtype
    scalars = (
        scale,
        *map(np.float32, constants),
        numbers,
        corrections,
        np.int32(missed),
        np.int32(last),
    )
    launch_elements(xp_of(arrays[0]), "adam", "adamw", dtype, arrays, *scalars)
