"""The numbers of a training step on a GPU: learning rate, step count, the factor of the gradient, the loss scale.

What the host passes to a launch is fixed when the launch is started, and for good when it is recorded in a CUDA graph.
So AdamW reads what changes from step to step on the GPU, in one array of float32:

    RATE        the learning rate                                                 the host writes it before each step
    COUNT       Adam's t, if no step has been left out since SKIPPED was 0        so it does this
    SCALE, GOOD, IN_A_ROW    the state of the loss scale (loss_scale.py)          the host, after it has read losses;
    SKIPPED     steps left out since then                                         from then on decide_step
    STOPPED     1 from the first step on whose loss or norm is not finite
    FACTOR      of the gradient; if it is not a number, nothing changes           decide_step

The host learns from the losses, when it reads them, what decide_step has decided: the rule is the same on both sides.

1 / (1 - beta^t) is looked up in a table which the host makes: the bits are those that it passes to a launch otherwise.
"""

import math

import numpy as np

from tinygrad2 import loss_scale
from tinygrad2.backend import to_device, to_host, xp_of
from tinygrad2.dispatch import has_kernels
from tinygrad2.halves import current_halves, halves_written
from tinygrad2.optim import adam_update, clip_scale
from tinygrad2.tensor import Tensor
from tinygrad2.writes import wrote

RATE, COUNT, SCALE, GOOD, IN_A_ROW, SKIPPED, STOPPED, FACTOR = range(8)


class StepNumbers:
    """Those of a training by Adam.

    array          (8,) float32, on the GPU
    corrections    (n, 2) float32, on the GPU: [t] is 1 / (1 - beta^t) for both betas, the last one for later t as well

    steps          of the whole training
    """

    def __init__(self, optimizer, steps):
        self.optimizer, self.xp = optimizer, xp_of(optimizer.flat.data)
        self.array = self.xp.zeros(8, np.float32)
        self.corrections = self.xp.asarray(bias_corrections(optimizer.betas, steps))

    @property
    def scale(self):
        """The loss scale, a Tensor () that the GPU changes."""
        return Tensor(self.array[SCALE])

    def of_next_step(self, lr, scale=None):
        """[(values, their place on the GPU)], to be copied there before the next step.

        scale    LossScale: its state is to be copied as well, and the GPU counts from there
        """
        values = [lr, self.optimizer.t + 1]
        if scale is not None:
            values += [scale.value, scale.good, scale.in_a_row, 0, 0]
        return [(np.array(values, np.float32), self.array[: len(values)])]

    def start_update(self):
        """Start the launches of Adam.step: `note_update` is what else it does, also where a graph repeats them."""
        optimizer, flat = self.optimizer, self.optimizer.flat
        flat.require_trainable()
        grad, halves = flat.grad, current_halves(flat.data)
        for part, own, t, decays in optimizer.pieces():
            adam_update_by_numbers(
                flat.data[part], grad[part], optimizer.m[own], optimizer.v[own], self.array, self.corrections,
                optimizer.t - t, *optimizer.betas, optimizer.eps, optimizer.weight_decay if decays else 0.0,
                *(half[part] for half in halves),
            )  # fmt: skip

    def note_update(self):
        """Count an update that was started, and note that it changes the weights, and their copy in 16 bits."""
        flat = self.optimizer.flat
        halves = current_halves(flat.data)
        self._count(1)
        wrote(flat.data)
        for half in halves:
            halves_written(flat.data, half.dtype)

    def take_back(self, updates):
        """So many of the updates that were counted have been left out by the GPU."""
        self._count(-updates)

    def _count(self, updates):
        optimizer = self.optimizer
        optimizer.t += updates
        for name in optimizer.flat.frozen:
            optimizer.missed[name] = optimizer.missed.get(name, 0) + updates


def bias_corrections(betas, steps):
    """(n, 2) float32: 1 / (1 - beta^t) of both betas for t = 0 (not used), 1, ... until both are 1, at most `steps`."""
    rows = [(0.0, 0.0)]
    for t in range(1, steps + 1):
        rows.append(tuple(np.float32(1 / (1 - beta**t)) for beta in betas))
        if rows[-1] == (1, 1):
            break
    return np.array(rows, np.float32)


@has_kernels
def decide_step(values, numbers, max_norm, micro_batches, dynamic):
    """Should this step change the weights, and by which factor of the gradient? Writes to `numbers`, the array of
    StepNumbers. This version reads it; a GPU's kernel decides without the host.

    values      (n + 1,) float32: losses, and the norm of the gradient of the mean over micro-batches, times the scale
    max_norm    see clip_scale
    dynamic     is the loss scaled by a number that changes?
    """
    state, values = to_host(numbers).copy(), to_host(values)
    scale = loss_scale.LossScale(dynamic)
    if dynamic:
        scale.value, scale.good, scale.in_a_row = float(state[SCALE]), int(state[GOOD]), int(state[IN_A_ROW])
    loss, norm = float(values[:-1].sum()), values[-1] / np.float32(scale.value)
    overflow = scale.overflows(loss, norm)
    if not (math.isfinite(loss + norm) or overflow):
        state[STOPPED] = 1
    if not state[STOPPED]:
        scale.update(overflow)
        state[SKIPPED] += overflow
    factor = clip_scale(norm, max_norm) / np.float32(micro_batches) / state[SCALE]
    state[FACTOR] = np.nan if state[STOPPED] or overflow else factor
    state[[SCALE, GOOD, IN_A_ROW]] = scale.value, scale.good, scale.in_a_row
    numbers[...] = to_device(state, "cpu" if xp_of(numbers) is np else "cuda")


@has_kernels
def adam_update_by_numbers(p, g, m, v, numbers, corrections, missed, beta1, beta2, eps, weight_decay, half=None):
    """adam_update (optim.py) with what it needs from the arrays of StepNumbers; t counts `missed` steps less. Nothing
    changes if the factor is not a number. This version reads the numbers, a GPU's kernel does so without the host."""
    state = to_host(numbers)
    if not np.isnan(state[FACTOR]):
        t = int(state[COUNT] - state[SKIPPED]) - missed
        factor, lr = float(state[FACTOR]), float(state[RATE])
        adam_update(p, g, m, v, factor, t, lr, beta1, beta2, eps, weight_decay, half)
