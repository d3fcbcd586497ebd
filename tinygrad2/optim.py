"""Adam with decoupled weight decay, and clipping by global norm. Learning rates: schedule.py.

    m <- beta1 m + (1 - beta1) g                 the mean of the gradient, over about 1/(1 - beta1) steps
    v <- beta2 v + (1 - beta2) g^2               the mean of its square
    mhat = m / (1 - beta1^t)                     m and v start at zero: without this the first steps would be
    vhat = v / (1 - beta2^t)                     too short (m) and too long (v)
    p <- p - lr (mhat / (sqrt(vhat) + eps) + weight_decay p)

Kingma and Ba, "Adam", ICLR 2015, algorithm 1; the decay outside the adaptive step is Loshchilov and Hutter,
"Decoupled weight decay regularization", ICLR 2019, algorithm 2 (AdamW). With weight_decay = 0 it is plain Adam.
"""

import numpy as np

from tinygrad2.backend import device_of, to_device, xp_of
from tinygrad2.function import fastest
from tinygrad2.schedule import SCHEDULES, learning_rate  # noqa: F401  part of this module's face

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


NORM_BLOCK = 1 << 16  # elements: the parts of the gradient whose squares are summed together


def square_sums(grad):
    """sum g^2 of each block of NORM_BLOCK elements of a flat array (n,): (blocks,) float64."""
    xp = xp_of(grad)
    whole = len(grad) // NORM_BLOCK * NORM_BLOCK
    sums = []
    for start in range(0, whole, 64 * NORM_BLOCK):                # 16 MB at a time: the squares need memory, too
        blocks = grad[start : min(start + 64 * NORM_BLOCK, whole)].reshape(-1, NORM_BLOCK)
        sums.append((blocks * blocks).sum(1))
    if whole < len(grad):
        sums.append((grad[whole:] * grad[whole:]).sum().reshape(1))
    return xp.concatenate(sums).astype("float64")


def block_square_sums(grad):
    """The same, by the fastest kernel there is for this array."""
    return fastest("square_sums", xp_of(grad), square_sums)(grad)


def norm_of(sums, dtype):
    """sqrt of the sum of square_sums, a 0-d array.

    Two stages, so that ranks that have a part of the gradient each (reducer.py) arrive at the bits of one that has it
    all; and a float32 sum of 124 million squares would be worth little.
    """
    return xp_of(sums).sqrt(sums.sum()).astype(dtype)


def grad_norm(grad):
    """sqrt(sum g^2) of a flat array (n,), a 0-d array."""
    return norm_of(block_square_sums(grad), grad.dtype)


class Adam:
    """Adam on flat buffers (tinygrad2/module.py); weight decay acts on matrices, not on biases and layernorms.

    flat      FlatBuffers: parameters and gradients
    parts     the slices of the buffers that this rank looks after, default: all (see reducer.py)
    m, v      first and second moment of these parts, one after the other
    t         steps done
    """

    def __init__(self, flat, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, parts=None):
        self.flat, self.betas, self.eps, self.weight_decay = flat, betas, eps, weight_decay
        self.parts = [slice(0, flat.size)] if parts is None else parts
        xp, size = xp_of(flat.data), sum(part.stop - part.start for part in self.parts)
        self.m = xp.zeros(size, dtype=flat.data.dtype)
        self.v = xp.zeros(size, dtype=flat.data.dtype)
        self.t = 0

    def step(self, lr, grad_scale=1.0):
        """Update every parameter. `grad_scale` multiplies the gradients (see clip_grad_norm), number or 0-d array."""
        self.t += 1
        flat, grad = self.flat, self.flat.grad
        update = fastest("adam_update", xp_of(grad), adam_update)
        for part, own, decays in self._pieces():
            update(
                flat.data[part], grad[part], self.m[own], self.v[own], grad_scale,
                self.t, lr, *self.betas, self.eps, self.weight_decay if decays else 0.0,
            )  # fmt: skip

    def _pieces(self):
        """(slice of the buffers, slice of m and v, does it decay?): the parts, cut where the matrices end."""
        end = 0
        for part in self.parts:
            border = min(max(self.flat.n_decay, part.start), part.stop)
            for start, stop, decays in ((part.start, border, True), (border, part.stop, False)):
                if start < stop:
                    yield slice(start, stop), slice(end, end + stop - start), decays
                    end += stop - start

    def load_state_dict(self, state, t):
        """Take over the moments, {"m.<parameter>": array, "v.<parameter>": array}, and the number of steps done.

        Raises ValueError naming a missing, unknown or wrongly sized entry; then nothing has been changed.
        """
        self._check(state)
        if self.m.size == self.flat.size:
            self._lay_out(state, self.m, self.v)
        else:
            whole = self.whole_moments(state)
            for own, moment in zip((self.m, self.v), whole):
                own[...] = to_device(np.concatenate([moment[part] for part in self.parts]), device_of(own))
        self.t = t

    def whole_moments(self, state):
        """Both moments of all parameters as NumPy arrays laid out like the buffers. Raises like load_state_dict."""
        self._check(state)
        m, v = (np.zeros(self.flat.size, self.flat.data.dtype) for _ in range(2))
        self._lay_out(state, m, v)
        return m, v

    def _lay_out(self, state, m, v):
        for letter, moment in (("m", m), ("v", v)):
            for name, part in self.flat.slices.items():
                values = state[f"{letter}.{name}"].reshape(-1).astype(moment.dtype, copy=False)
                moment[part] = to_device(values, device_of(moment))

    def _check(self, state):
        own = {f"{letter}.{name}": part for letter in "mv" for name, part in self.flat.slices.items()}
        for name in sorted(set(own) | set(state)):
            size = own[name].stop - own[name].start if name in own else None
            if name not in state or state[name].size != size:
                found = state[name].size if name in state else "nothing"
                raise ValueError(f"cannot load these moments: {name} has {found}, the model's has {size} numbers")


def clip_grad_norm(grad, max_norm):
    """The norm of the whole gradient, and the factor that brings it down to max_norm where it is above.

        norm = sqrt(sum g^2)        scale = min(1, max_norm / (norm + 1e-6))

    Both are 0-d arrays on the gradient's device (nothing waits for a GPU); the factor is for Adam.step, so clipping
    costs no pass of its own. max_norm = 0 means no clipping. Pascanu et al., ICML 2013, algorithm 1.
    """
    norm = grad_norm(grad)
    return norm, clip_scale(norm, max_norm)


def clip_scale(norm, max_norm):
    """The factor of clip_grad_norm, from the norm."""
    return xp_of(norm).minimum(1.0, max_norm / (norm + 1e-6)) if max_norm else 1.0
