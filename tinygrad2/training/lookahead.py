"""Steps on a GPU that do not wait for it: the host starts a step while the GPU still computes the ones before.

A step returns its loss and its gradient norm, and whoever reads them waits until the GPU has computed them. So they
stay on the GPU, and are read together every few steps (--read-every). The host must not decide by them either; what it
does on a CPU, the GPU does here (decide_step of step_numbers.py): from the first step on whose loss or norm is not
finite, weights and Adam's moments stay as they were before it, until the host reads the losses and goes back there.

So it is with the scale of float16's loss (loss_scale.py): the GPU leaves out steps that overflow, and scales the loss
of the next one. The host counts each step it starts as an update, and takes those back that were left out.
"""

import contextlib
import math
import time
from dataclasses import dataclass

import numpy as np

from tinygrad2.backend import array_module, to_host, xp_of
from tinygrad2.datasets.token_files import ChangedData
from tinygrad2.dispatch import fast_version
from tinygrad2.gpu.arena import Arena
from tinygrad2.training.captured import DeviceSteps
from tinygrad2.training.gpu_rules import refuse_graph, why_each_waits


@dataclass(frozen=True)
class Step:
    """What one step returned.

    done        steps done with it, or before it where its values are not finite
    overflow    why it was skipped, "" if it was not (loss_scale.py); then the norm is not finite
    """

    done: int
    loss: float
    norm: float
    lr: float
    overflow: str = ""


class Lookahead:
    """The steps of a Trainer.

    ahead    whether steps are started before the last ones have been read
    arena    the memory of the arrays of a step on a GPU, or None

    Raises UserError for --cuda-graph yes where no step can be a graph, since each waits for its own values.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        reason = why_each_waits(trainer.config, trainer.world.size, trainer.reducer.is_nccl)
        refuse_graph(trainer.config, reason)
        self.ahead = not reason
        self.steps, self.arena = None, None
        if self.ahead:
            self.steps = DeviceSteps(trainer)
            self.arena = self.steps.arena
        elif trainer.config.device == "cuda":
            self.arena = Arena(array_module("cuda"), trainer.world.print)
        self._started = []  # (state before the step, lr, its losses and norm on the GPU)
        self._begin, self._starting = None, 0.0

    def step(self, loader, is_outlier=None, read=True):
        """One step of the training: [Step] of all that have not been returned yet if `read`, else []. The last of them
        may have values that are not finite; then the trainer is where it was before it.

        They are also read after the last step, if a signal has come, and if the data of this step have been changed:
        then there is no step, and the error is raised when nothing is left to return.
        """
        trainer = self.trainer
        lr = trainer.lr()
        if not self.ahead or not self._has_kernel():
            with self.arena.step() if self.arena else contextlib.nullcontext():
                loss, norm = trainer.step(loader, is_outlier)
            return [Step(trainer.done, loss, norm, lr, trainer.loss_scale.notice() if trainer.skipped else "")]
        self.steps.wait_for_others()
        with self.steps.stream:
            try:
                self._start(loader, lr)
            except ChangedData:
                if not self._started or trainer.world.size > 1:   # of several ranks the others are inside the step
                    raise
                return self._read()
            if read or trainer.done == trainer.config.steps or self._is_to_stop():
                return self._read()
            return []

    def _is_to_stop(self):
        """Has a signal come? Of several ranks each knows its own signals only, until the losses are read."""
        trainer = self.trainer
        return trainer.world.size == 1 and trainer.stop is not None and bool(trainer.stop.signal)

    def _has_kernel(self):
        """Only a kernel leaves the weights as they are where the scale is not a number."""
        flat, optimizer = self.trainer.flat, self.trainer.optimizer
        arrays = flat.data, flat.grad_buffer, optimizer.m, optimizer.v
        return fast_version("adam_update_by_numbers", xp_of(flat.data), *arrays) is not None

    def _start(self, loader, lr):
        """As Trainer.step, but for what is said at the top of this file."""
        trainer, config = self.trainer, self.trainer.config
        before = trainer.done, trainer.position, trainer.optimizer.t, dict(trainer.optimizer.missed)
        begin, waited = time.perf_counter(), self.steps.uploads.waited
        self._begin = self._begin or begin
        values = self.steps.run(loader, lr, is_first=not self._started)     # (micro-batches + 1,): losses, and the norm
        self._starting += time.perf_counter() - begin - (self.steps.uploads.waited - waited)
        if not config.overfit_one_batch:
            trainer.position = loader.after(trainer.position)
        trainer.done += 1
        self._started.append((before, lr, values))
        if not self.steps.is_usual():                             # its time says nothing
            self._begin, self._starting = None, 0.0

    def _read(self):
        """[Step] of those that were started, read from the GPU at once."""
        trainer, started = self.trainer, self._started
        with trainer.world.collective(f"steps until {trainer.done}", moves_data=False):    # a rank may be missing
            values = to_host(array_module(trainer.config.device).concatenate([row for _, _, row in started]))
        if self._begin is not None:
            self.steps.note_time(self._starting, time.perf_counter() - self._begin)
        self._begin, self._starting = None, 0.0
        signal = trainer.stop.signal or 0 if trainer.stop else 0
        rows = trainer.world.all_gather(np.append(values, signal).astype(float), f"losses until step {trainer.done}")
        trainer.stopping = int(rows[:, -1].max())
        rows, found = rows[:, :-1].reshape(len(rows), len(started), -1), []               # (ranks, steps, values)
        self._started, scale, left_out = [], trainer.loss_scale, 0
        for i, (before, lr, _) in enumerate(started):
            loss = math.fsum(rows[:, i, :-1].flat) / trainer.micro_batches
            norm = float(rows[0, i, -1]) / scale.value
            trainer.skipped = scale.overflows(loss, norm)         # as the GPU has found
            if not (math.isfinite(loss + norm) or trainer.skipped):
                trainer.done, trainer.position, trainer.optimizer.t, trainer.optimizer.missed = before
                found.append(Step(before[0] + 1, loss, norm, lr))
                break
            scale.update(trainer.skipped)
            left_out += trainer.skipped
            found.append(Step(before[0] + 1, loss, norm, lr, scale.notice() if trainer.skipped else ""))
        if left_out:
            self.steps.numbers.take_back(left_out)
        return found


def is_read(config, done):
    """Are the losses read after this step, the `done`-th one? Also where something else happens that needs them."""
    every = (config.read_every, config.eval_every, config.sample_every, config.compare_every, config.checkpoint_every,
             config.keep_every)  # fmt: skip
    return done == config.steps or any(n > 0 and done % n == 0 for n in every)
