"""Adam and the gradient's norm on the CPU. Same formulas (tinygrad2/optim.py); what changes, and what it bought:

- One pass: p, g, m and v are read once, p, m and v written once, the clip factor multiplied in in the same pass. That
  is the speed of memory: 10 to 15 ms for 32M parameters; the reference's temporaries take 64.
- The norm sums blocks of 65,536 squares in float32 and adds the blocks in float64, in order: one pass, the same bits
  for any number of threads, and more accurate than a float32 dot product of 124 million terms.
"""

import math

import numpy as np

from ops.kernels.cpu.numba_jit import is_float32, jit
from ops.kernels.cpu.spread import spread
from tinygrad2.dispatch import register_kernel
from tinygrad2.optim import NORM_BLOCK
from tinygrad2.system.threads import POOL

_BLOCK = 1 << 16  # elements for which waking a thread pays


@register_kernel("adam_update", "numpy", supports=lambda p, g, m, v, *more: is_float32(p, g, m, v) and len(more) < 8)
def adam_update_cpu(p, g, m, v, grad_scale, t, lr, beta1, beta2, eps, weight_decay):
    """As adam_update of optim.py."""
    constants = (grad_scale, lr, 1 - beta1, 1 - beta2, 1 / (1 - beta1**t), 1 / (1 - beta2**t), eps, weight_decay)
    POOL.split(_adam, len(p), p, g, m, v, *map(np.float32, constants), grain=_BLOCK)


@jit
def _adam(lo, hi, p, g, m, v, scale, lr, gain1, gain2, unbias1, unbias2, eps, decay):
    if spread(lo, hi):
        return
    p, g, m, v = p[lo:hi], g[lo:hi], m[lo:hi], v[lo:hi]
    for i in range(p.size):
        grad = g[i] * scale
        m[i] += gain1 * (grad - m[i])
        v[i] += gain2 * (grad * grad - v[i])
        mhat, vhat = m[i] * unbias1, v[i] * unbias2
        p[i] -= lr * (mhat / (np.float32(math.sqrt(vhat)) + eps) + decay * p[i])


@register_kernel("block_square_sums", "numpy", supports=is_float32)
def block_square_sums_cpu(grad):
    """As block_square_sums of optim.py."""
    sums = np.zeros(-(-len(grad) // NORM_BLOCK))                  # float64
    POOL.split(_square_sums, len(sums), grad, sums)
    return sums


@jit
def _square_sums(lo, hi, grad, sums):
    if spread(lo, hi):
        return
    for block in range(lo, hi):
        part = grad[block * NORM_BLOCK : (block + 1) * NORM_BLOCK]
        total = np.float32(0)
        for i in range(part.size):
            total += part[i] * part[i]
        sums[block] = total
