"""Adam with decoupled weight decay, clipping by global norm, and the learning rate of each step.

    m <- beta1 m + (1 - beta1) g                 moving average of the gradient, over about 1/(1 - beta1) steps
    v <- beta2 v + (1 - beta2) g^2               and of its square
    mhat = m / (1 - beta1^t)                     m and v start at zero: without this correction the first steps
    vhat = v / (1 - beta2^t)                     would be too short (m) or too long (v)
    p <- p - lr (mhat / (sqrt(vhat) + eps) + weight_decay p)

Kingma and Ba, "Adam", ICLR 2015, algorithm 1; the decay outside the adaptive step is Loshchilov and Hutter,
"Decoupled weight decay regularization", ICLR 2019, algorithm 2 (AdamW). With weight_decay = 0 it is plain Adam.
"""

import math

import numpy as np

from tinygrad2.backend import device_of, large_zeros, to_device, xp_of
from tinygrad2.dispatch import has_kernels
from tinygrad2.halves import cast_to_half, current_halves, halves_written
from tinygrad2.writes import wrote

SCHEDULES = ("constant", "linear", "cosine", "wsd")
NORM_BLOCK = 1 << 16  # elements of the gradient whose squares are summed together
_BLOCK = 1 << 16  # elements per round on a CPU: the temporaries of the formula stay in the cache
_GPU_BLOCK = 1 << 24  # on a GPU: few launches, and temporaries of 64 MB each

# -- Adam ------------------------------------------------------------------------------------------------------------


@has_kernels
def adam_update(p, g, m, v, grad_scale, t, lr, beta1, beta2, eps, weight_decay, half=None):
    """One Adam step in place on flat arrays (n,); g is multiplied by grad_scale; t counts steps from 1. `half` (n,), if
    there is one, is then p in 16 bits."""
    size = _BLOCK if device_of(p) == "cpu" else _GPU_BLOCK
    for start in range(0, len(p), size):
        block = slice(start, start + size)
        _update_block(p[block], g[block] * grad_scale, m[block], v[block], t, lr, beta1, beta2, eps, weight_decay)
    if half is not None:
        cast_to_half(p, half)


def _update_block(p, g, m, v, t, lr, beta1, beta2, eps, weight_decay):
    # lab: begin adamw
    xp = xp_of(p)
    m += (1 - beta1) * (g - m)
    v += (1 - beta2) * (g * g - v)
    mhat = m / (1 - beta1**t)
    vhat = v / (1 - beta2**t)
    p -= lr * (mhat / (xp.sqrt(vhat) + eps) + weight_decay * p)
    # lab: end adamw


class Adam:
    """Adam on flat buffers (flat_buffers.py); weight decay applies to matrices, not to biases and LayerNorm parameters.

    flat      FlatBuffers: parameters and gradients
    parts     the slices of the buffers that this rank updates (default: all; see distributed/zero.py)
    m, v      first and second moment of these parts, one after the other, (n,) of the parameters' dtype
    t         steps taken so far
    missed    {name: steps in which the parameter was frozen}; its own t is t - missed, as its moments are that young
    """

    def __init__(self, flat, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, parts=None):
        self.flat, self.betas, self.eps, self.weight_decay = flat, betas, eps, weight_decay
        self.parts = [slice(0, flat.size)] if parts is None else parts
        xp, size = xp_of(flat.data), sum(part.stop - part.start for part in self.parts)
        self.m, self.v = (large_zeros(xp, size, flat.data.dtype) for _ in range(2))
        self.t, self.missed = 0, {}

    def step(self, lr, grad_scale=1.0):
        """Update every parameter that is not frozen; neither value nor moments of a frozen one change.

        `grad_scale` multiplies the gradients (see clip_scale), a float or 0-d array. Raises UserError if all parameters
        are frozen.
        """
        flat, grad = self.flat, self.flat.grad
        flat.require_trainable()
        self.t += 1
        for name in flat.frozen:
            self.missed[name] = self.missed.get(name, 0) + 1
        halves = current_halves(flat.data)  # on a GPU perhaps the weights in 16 bits, which its products take
        for part, own, t, decays in self.pieces():
            adam_update(
                flat.data[part], grad[part], self.m[own], self.v[own], grad_scale,
                t, lr, *self.betas, self.eps, self.weight_decay if decays else 0.0, *(half[part] for half in halves),
            )  # fmt: skip
        wrote(flat.data)  # a graph of the old weights is of no use now, and its backward says so
        for half in halves:
            halves_written(flat.data, half.dtype)

    def pieces(self):
        """Yields (slice of the buffers, slice of m and v, t, whether it decays) for what is not frozen: parts, split
        where matrices end and where parameters of another t begin."""
        flat, end = self.flat, 0
        runs = flat.runs([self.t - self.missed.get(name, 0) if parameter.requires_grad else None
                          for name, parameter in zip(flat.slices, flat.parameters)])  # fmt: skip
        for part in self.parts:
            for run, t in runs:
                first, last = max(run.start, part.start), min(run.stop, part.stop)
                border = min(max(flat.n_decay, first), last)
                for start, stop, decays in ((first, border, True), (border, last, False)):
                    if start < stop:
                        offset = end - part.start
                        yield slice(start, stop), slice(start + offset, stop + offset), t, decays
            end += part.stop - part.start

    def load_state_dict(self, state, t, missed=None):
        """Load the moments, {"m.<parameter>": array, "v.<parameter>": array}, and the numbers of steps.

        Raises ValueError naming a missing, unknown or wrongly sized entry, or one with values that Adam cannot have,
        before anything is changed.
        """
        self._check(state)
        for name, values in state.items():  # v is a mean of squares, and infinite where one overflows
            values = values.astype(np.float32, copy=False)
            valid = values >= 0 if name.startswith("v.") else np.isfinite(values)
            if not valid.all():
                raise ValueError(f"cannot load these moments: {name} has values that no optimizer writes")
        if unknown := sorted(set(missed or ()) - set(self.flat.slices)):
            raise ValueError(f"cannot load these moments: {unknown[0]} is not a parameter of this model")
        if self.m.size == self.flat.size:
            self._copy_to(state, self.m, self.v)
        else:
            for own, moment in zip((self.m, self.v), self.full_moments(state)):
                own[...] = to_device(np.concatenate([moment[part] for part in self.parts]), device_of(own))
        self.t, self.missed = t, dict(missed or {})

    def full_moments(self, state):
        """Both moments of all parameters, on all ranks, as NumPy arrays laid out like the buffers.

        Raises like load_state_dict.
        """
        self._check(state)
        m, v = (np.zeros(self.flat.size, self.flat.data.dtype) for _ in range(2))
        self._copy_to(state, m, v)
        return m, v

    def _copy_to(self, state, m, v):
        for letter, moment in (("m", m), ("v", v)):
            for name, part in self.flat.slices.items():
                values = state[f"{letter}.{name}"].astype(moment.dtype, copy=False).reshape(-1)
                moment[part] = to_device(values, device_of(moment))

    def _check(self, state):
        own = {f"{letter}.{name}": part for letter in "mv" for name, part in self.flat.slices.items()}
        for name in sorted(set(own) | set(state)):
            size = own[name].stop - own[name].start if name in own else 0
            given = state[name].size if name in state else 0
            if given != size:
                raise ValueError(f"cannot load these moments: {name} has {given} values, the model needs {size}")


# -- the norm of the gradient, and clipping --------------------------------------------------------------------------


@has_kernels
def block_square_sums(grad):
    """sum g^2 of each block of NORM_BLOCK elements of a flat array (n,): (blocks,) float64."""
    xp = xp_of(grad)
    n_full = len(grad) // NORM_BLOCK * NORM_BLOCK                 # elements in full blocks
    sums = []
    for start in range(0, n_full, 64 * NORM_BLOCK):               # 16 MB at a time: the squares need memory as well
        blocks = grad[start : min(start + 64 * NORM_BLOCK, n_full)].reshape(-1, NORM_BLOCK)
        sums.append((blocks * blocks).sum(1))
    if n_full < len(grad):
        sums.append((grad[n_full:] * grad[n_full:]).sum().reshape(1))
    return xp.concatenate(sums).astype("float64")


@has_kernels
def norm_of(sums, dtype):
    """sqrt of the sum of block_square_sums, a 0-d array.

    In two stages, so that ranks with one part of the gradient each (distributed/zero.py) get the same bits as one rank
    with all of it, and because a float32 sum of 124 million squares would be inexact.
    """
    return xp_of(sums).sqrt(sums.sum()).astype(dtype)


def grad_norm(grad):
    """sqrt(sum g^2) of a flat array (n,), a 0-d array of its dtype on its device."""
    return norm_of(block_square_sums(grad), grad.dtype)


def clip_scale(norm, max_norm):
    """The factor that scales a gradient of this norm down to max_norm if it is larger; max_norm = 0: no clipping.

        scale = min(1, max_norm / (norm + 1e-6))

    A 0-d array on the norm's device, for Adam.step: nothing waits for a GPU, and clipping needs no pass over the data.
    Pascanu et al., "On the difficulty of training recurrent neural networks", ICML 2013, algorithm 1.
    """
    # lab: begin clip_grad_norm
    return xp_of(norm).minimum(1.0, max_norm / (norm + 1e-6)) if max_norm else 1.0
    # lab: end clip_grad_norm


# -- the learning rate -----------------------------------------------------------------------------------------------


def learning_rate(step, schedule, peak, final, warmup, total, decay=0):
    """The learning rate of step 0, 1, ..., total - 1. Raises ValueError for an unknown schedule.

    Warmup: peak (step + 1) / warmup. Then, with x going from 0 to 1 over the rest:

        constant   peak
        linear     peak + x (final - peak)
        cosine     final + (1 + cos(pi x)) / 2 (peak - final)         Loshchilov and Hutter, "SGDR", ICLR 2017, eq. 5
        wsd        peak, and over the last `decay` steps as linear    Hu et al., "MiniCPM", COLM 2024, section 4.2

    wsd is warmup, stable, decay: a training stopped before its decay can be resumed with more steps and loses nothing.
    """
    # lab: begin cosine_schedule
    if step < warmup:
        return peak * (step + 1) / warmup
    start = max(warmup, total - decay) if schedule == "wsd" else warmup
    x = min(1.0, max(0, step - start) / max(1, total - start))
    if schedule == "constant":
        return peak
    if schedule in ("linear", "wsd"):
        return peak + x * (final - peak)
    if schedule == "cosine":
        return final + 0.5 * (1 + math.cos(math.pi * x)) * (peak - final)
    raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {schedule!r}")
    # lab: end cosine_schedule
