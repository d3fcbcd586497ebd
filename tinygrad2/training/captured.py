"""A training step as a CUDA graph: the host starts its few hundred kernels with one call.

Starting a kernel takes the host some 5 us, and the Python around it more. Where the GPU has computed a kernel before
the host has started the next one, as with small batches, a step takes as long as the host does. A graph is recorded
once, by running the step while the stream captures, and is launched by one call from then on (gpu/graph.py).

All of a step is in it: forward, backward, the norm, the factor of the gradient, AdamW. What is new in each step is
copied to the same place on the GPU before: the tokens, the step's numbers (gpu/step_numbers.py), and the keys of
dropout's masks. All arrays of the step have theirs in an arena (gpu/arena.py). Numbers that the host passes to kernels
are recorded as they are.
"""

import contextlib

import numpy as np

from tinygrad2.backend import array_module
from tinygrad2.gpu.arena import Arena
from tinygrad2.gpu.device import new_pool
from tinygrad2.gpu.graph import NotRecorded, graph_stream, record
from tinygrad2.gpu.step_numbers import StepNumbers, decide_step
from tinygrad2.gpu.uploads import Uploads
from tinygrad2.halves import half_dtype, half_of
from tinygrad2.precision import MIXED
from tinygrad2.training.gpu_rules import refuse_graph, why_no_graph

USUAL = 2  # steps before a recording, at least: they compile the kernels, and show where arrays may lie
BUSY = 0.7  # share of a step's time that the host takes to start it, from which on a graph pays


class DeviceSteps:
    """The steps of a Trainer on a GPU, started as usual or, if that pays, as a graph.

    stream     on which a step runs; whoever uses its results does so on it, too
    graph      the recorded one, or None
    numbers    StepNumbers
    uploads    Uploads, of batches and numbers
    arena      the memory of the arrays of a step
    """

    def __init__(self, trainer):
        self.trainer, self.xp = trainer, array_module(trainer.config.device)
        self.graph, self._values, self._batches, self._recorded_for, self._done = None, (), [], None, 0
        self._wanted, self._failed = trainer.config.cuda_graph == "yes", False
        reason = why_no_graph(trainer.world.size)
        refuse_graph(trainer.config, reason)
        self.permitted = trainer.config.cuda_graph != "no" and not reason
        self.stream = graph_stream() if self.permitted else contextlib.nullcontext()
        self.arena, self._held = Arena(self.xp, trainer.world.print), None
        self.numbers = StepNumbers(trainer.optimizer, trainer.config.steps)
        self._keys = self.xp.zeros(len(trainer.dropout_keys()), np.uint64)
        self.uploads = Uploads(self.xp)

    def wait_for_others(self):
        """What follows on the stream waits for what the caller has started so far: its stream waits for no other."""
        if self.permitted:
            self.stream.wait_event(self.xp.cuda.get_current_stream().record())

    def run(self, loader, lr, is_first):
        """Start one step, and count it as an update of the weights. Returns the losses of its micro-batches, and the
        norm of the gradient, (n + 1,), in memory that the next run leaves alone.

        is_first    the host knows the state before this step: it has read the losses of all steps before
        """
        trainer = self.trainer
        rows = list(loader.micro_batches(trainer.position, trainer.config.micro_batch_size))
        with self.stream:
            rows = self._in_place(rows, lr, is_first)
            self._by_graph_or_not(rows)
            self.numbers.note_update()
            return self._values.copy()

    def _by_graph_or_not(self, rows):
        if self.permitted:
            self._renew_copies()
            ready = self._done >= USUAL and (self.arena.is_planned or self.arena.given_up)
            if self.graph is None and ready and self._wanted:
                self.graph = self._recorded(rows)
        if self.graph:
            self.graph.launch(self.stream)
        else:
            self._compute(rows)
        self._done += 1

    def is_usual(self):
        """Has the last step neither compiled kernels, nor measured algorithms?"""
        return self._done > USUAL

    def note_time(self, starting, seconds):
        """A step took so many seconds, in the first of which the host started it: is a graph worth it?"""
        self._wanted = not self._failed and (self._wanted or starting > BUSY * seconds)

    def _renew_copies(self):
        """The weights in 16 bits, in case something else than Adam has changed them: a graph casts none, and what is
        captured while one is recorded is not done yet."""
        flat, dtype = self.trainer.flat, self.trainer.config.dtype
        if dtype in MIXED:
            half_of(flat.data, half_dtype(dtype))

    def _in_place(self, rows, lr, is_first):
        """The micro-batches on the GPU, where those of all steps are; the step's numbers are copied with them."""
        model, trainer = self.trainer.model, self.trainer
        kind = [(x.shape, y.shape) for _, x, y in rows], trainer.flat.frozen
        if self._recorded_for != kind:
            self._batches = [[self.xp.empty(a.shape, a.dtype) for a in (x, y)] for _, x, y in rows]
            self._recorded_for, self.graph = kind, None
        pairs = self.numbers.of_next_step(lr, trainer.loss_scale if is_first else None)
        if self._keys.size:
            pairs.append((np.array(trainer.dropout_keys(), np.uint64), self._keys))
        for (_, x, y), (x_place, y_place) in zip(rows, self._batches):
            pairs.append((model.checked(x), x_place))
            pairs.append((model.checked(y, ignored=-1), y_place))
        self.uploads.start(pairs)
        return [(first, *places) for (first, _, _), places in zip(rows, self._batches)]

    def _recorded(self, rows):
        """The graph of a step, of which nothing is computed until it is launched. None if something in it cannot be
        recorded, such as a product by CuPy: then the steps go on as usual, and the user is told why."""
        pool = new_pool(self.xp)                                  # for arrays without a place: nobody else gets theirs
        self._held = pool, self.arena.block
        try:
            graph, _ = record(self.stream, pool, lambda: self._compute(rows))
        except NotRecorded as error:
            self._wanted, self._failed = False, True
            self.trainer.world.print(f"note      no CUDA graph: {error}")
            return None
        return graph

    def _compute(self, rows):
        """Losses and norm, to where those of all steps are. The arrays of the step lie in the arena."""
        if len(self._values) != len(rows) + 1:
            self._values = self.xp.empty(len(rows) + 1, self.trainer.flat.data.dtype)
        with self.arena.step():
            self._start(rows)

    def _start(self, rows):
        """As Trainer.step, but that the GPU decides whether the weights change."""
        trainer, losses, values = self.trainer, [], self._values
        is_dynamic = trainer.loss_scale.dynamic
        known = {"scale": self.numbers.scale} if is_dynamic else {}             # to the GPU, not to the host
        if self._keys.size:
            known["keys"] = [self._keys[i] for i in range(self._keys.size)]
        trainer.reducer.begin(f"gradients of step {trainer.done + 1}")
        for first_row, x, y in rows:
            with trainer.reducer.micro_batch():
                losses.append(trainer.micro_step(first_row, x, y, **known))
        trainer.reducer.finish()
        norm = trainer.reducer.grad_norm() / trainer.micro_batches
        for i, value in enumerate([*losses, norm]):               # one at a time: for a list, addresses would be copied
            values[i] = value                                     # from the host, which a capture refuses
        seen = self._of_all_ranks(values) if is_dynamic else values
        decide_step(seen, self.numbers.array, trainer.config.grad_clip, trainer.micro_batches, is_dynamic)
        self.numbers.start_update()

    def _of_all_ranks(self, values):
        """The same with losses summed over the ranks: a norm that is not finite means another thing if a loss of any
        rank is not (loss_scale.py), and all ranks must decide alike."""
        if self.trainer.world.size > 1:
            values = values.copy()
            self.trainer.reducer.algorithm.all_reduce(values[:-1])
        return values
