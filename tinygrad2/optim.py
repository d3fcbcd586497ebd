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

from tinygrad2.backend import device_of, to_device, xp_of
from tinygrad2.function import fastest

_BLOCK = 1 << 16  # elements per round: what the formula needs in between stays small and in the cache


def adam_update(p, g, m, v, grad_scale, t, lr, beta1, beta2, eps, weight_decay):
    """One Adam step in place on flat arrays (n,); g counts times grad_scale; t counts steps from 1."""
    for start in range(0, len(p), _BLOCK):
        block = slice(start, start + _BLOCK)
        _update_block(p[block], g[block] * grad_scale, m[block], v[block], t, lr, beta1, beta2, eps, weight_decay)


def _update_block(p, g, m, v, t, lr, beta1, beta2, eps, weight_decay):
    xp = xp_of(p)
    m += (1 - beta1) * (g - m)
    v += (1 - beta2) * (g * g - v)
    mhat = m / (1 - beta1**t)
    vhat = v / (1 - beta2**t)
    p -= lr * (mhat / (xp.sqrt(vhat) + eps) + weight_decay * p)


def grad_norm(grad):
    """sqrt(sum g^2) of a flat array (n,), a 0-d array."""
    xp = xp_of(grad)
    return xp.sqrt(xp.dot(grad, grad))


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
        flat, grad = self.flat, self.flat.grad
        update = fastest("adam_update", xp_of(grad), adam_update)
        for part, decay in ((slice(0, flat.n_decay), self.weight_decay), (slice(flat.n_decay, None), 0.0)):
            update(
                flat.data[part], grad[part], self.m[part], self.v[part], grad_scale,
                self.t, lr, *self.betas, self.eps, decay,
            )  # fmt: skip


    def load_state_dict(self, state, t):
        """Take over the moments, {"m.<parameter>": array, "v.<parameter>": array}, and the number of steps done.

        Raises ValueError naming a missing, unknown or wrongly sized entry; then nothing has been changed.
        """
        own = {f"{letter}.{name}": part for letter in "mv" for name, part in self.flat.slices.items()}
        for name in sorted(set(own) | set(state)):
            size = own[name].stop - own[name].start if name in own else None
            if name not in state or state[name].size != size:
                found = state[name].size if name in state else "nothing"
                raise ValueError(f"cannot load these moments: {name} has {found}, the model's has {size} numbers")
        for name, part in own.items():
            moment = self.m if name.startswith("m.") else self.v
            moment[part] = to_device(state[name].reshape(-1).astype(moment.dtype, copy=False), device_of(moment))
        self.t = t


def clip_grad_norm(grad, max_norm):
    """The norm of the whole gradient, and the factor that brings it down to max_norm where it is above.

        norm = sqrt(sum g^2)        scale = min(1, max_norm / (norm + 1e-6))

    Both are 0-d arrays on the gradient's device (nothing waits for a GPU); the factor is for Adam.step, so clipping
    costs no pass of its own. max_norm = 0 means no clipping. Pascanu et al., ICML 2013, algorithm 1.
    """
    xp = xp_of(grad)
    norm = fastest("grad_norm", xp, grad_norm)(grad)
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
