"""Adam with decoupled weight decay, clipping by global norm, and learning-rate schedules.

    m <- beta1 m + (1 - beta1) g                 the mean of the gradient, over about 1/(1 - beta1) steps
    v <- beta2 v + (1 - beta2) g^2               the mean of its square
    mhat = m / (1 - beta1^t)                     m and v start at zero: without this the first steps would be
    vhat = v / (1 - beta2^t)                     too short (m) and too long (v)
    p <- p - lr (mhat / (sqrt(vhat) + eps) + weight_decay p)

Kingma and Ba, "Adam", ICLR 2015, algorithm 1; the decay outside the adaptive step is Loshchilov and Hutter,
"Decoupled weight decay regularization", ICLR 2019, algorithm 2 (AdamW). With weight_decay = 0 it is plain Adam.
"""

import math

from tinygrad2.backend import xp_of

_BLOCK = 1 << 16  # elements per round: what the formula needs in between stays small and in the cache


def adam_update(p, g, m, v, t, lr, beta1, beta2, eps, weight_decay):
    """One Adam step in place on arrays of one shape; t counts steps from 1."""
    xp = xp_of(p)
    m += (1 - beta1) * (g - m)
    v += (1 - beta2) * (g * g - v)
    mhat = m / (1 - beta1**t)
    vhat = v / (1 - beta2**t)
    p -= lr * (mhat / (xp.sqrt(vhat) + eps) + weight_decay * p)


class Adam:
    """Adam on flat buffers (tinygrad2/module.py); weight decay acts on matrices, not on biases and layernorms.

    flat      FlatBuffers: parameters and gradients
    m, v      first and second moment, arrays like flat.data
    t         steps done
    """

    def __init__(self, flat, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        self.flat, self.betas, self.eps, self.weight_decay = flat, betas, eps, weight_decay
        xp = xp_of(flat.data)
        self.m = xp.zeros_like(flat.data)
        self.v = xp.zeros_like(flat.data)
        self.t = 0

    def step(self, lr, grad_scale=1.0):
        """Update every parameter. `grad_scale` multiplies the gradients (see clip_grad_norm), number or 0-d array."""
        self.t += 1
        flat = self.flat
        for lo, hi, decay in ((0, flat.n_decay, self.weight_decay), (flat.n_decay, flat.size, 0.0)):
            for start in range(lo, hi, _BLOCK):
                block = slice(start, min(start + _BLOCK, hi))
                adam_update(
                    flat.data[block], flat.grad[block] * grad_scale, self.m[block], self.v[block],
                    self.t, lr, *self.betas, self.eps, decay,
                )  # fmt: skip


def clip_grad_norm(grad, max_norm):
    """The norm of the whole gradient, and the factor that brings it down to max_norm where it is above.

        norm = sqrt(sum g^2)        scale = min(1, max_norm / (norm + 1e-6))

    Both are 0-d arrays on the gradient's device (nothing waits for a GPU); the factor is for Adam.step, so clipping
    costs no pass of its own. max_norm = 0 means no clipping. Pascanu et al., ICML 2013, algorithm 1.
    """
    xp = xp_of(grad)
    norm = xp.sqrt(xp.dot(grad, grad))
    if not max_norm:
        return norm, 1.0
    return norm, xp.minimum(1.0, max_norm / (norm + 1e-6))


SCHEDULES = ("constant", "linear", "cosine")


def learning_rate(step, schedule, peak, final, warmup, total):
    """The learning rate of step 0, 1, ..., total - 1.

    Warmup: peak (step + 1) / warmup. Then, with x going from 0 to 1 over the rest:

        constant   peak
        linear     peak + x (final - peak)
        cosine     final + (1 + cos(pi x)) / 2 (peak - final)         Loshchilov and Hutter, "SGDR", ICLR 2017, eq. 5
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    x = min(1.0, (step - warmup) / max(1, total - warmup))
    if schedule == "constant":
        return peak
    if schedule == "linear":
        return peak + x * (final - peak)
    if schedule == "cosine":
        return final + 0.5 * (1 + math.cos(math.pi * x)) * (peak - final)
    raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {schedule!r}")
