"""Profiler: what a training step does when, in all of its threads. It changes nothing that is computed.

    profiler = Profiler(trainer)
    loss, norm = profiler.step(loader)             as trainer.step(loader), recorded
    profiler.steps[-1]                             a Recording: spans, and what the pool's threads ran

Ops report themselves to an observer (function.py). The other parts of a step (data, sums over ranks, norm, optimizer)
are methods, which are wrapped for as long as the step takes; a step that is not profiled runs no line of this file.
"""

import contextlib
import threading
import time

import numpy as np

from tinygrad2.backend import xp_of
from tinygrad2.function import observe
from tinygrad2.monitor.op_costs import backward_bytes, forward_bytes, products
from tinygrad2.system.memory import resident_bytes
from tinygrad2.system.threads import POOL

_MEMORY_INTERVAL = 1e-2  # seconds between readings of the memory, which take about 50 us each


class Span:
    """A stretch of time in one thread. Spans of a thread nest.

    kind       "step", "phase", "layer", "op", or "wait", "comm" (a collective), "part" (of a split of the pool)
    name       what is done; of an op its name
    phase      of an op: "forward", "backward", or "recompute": a forward pass within backward
    layer      of an op: the module it belongs to
    inner      seconds of the spans directly inside
    flops, bytes   of an op (op_costs.py)
    """

    __slots__ = ("kind", "name", "phase", "layer", "begin", "end", "inner", "flops", "bytes", "thread", "parent")

    def __init__(self, kind, name, phase="", layer="", parent=None):
        self.kind, self.name, self.phase, self.layer, self.parent = kind, name, phase, layer, parent
        self.inner, self.flops, self.bytes, self.end = 0.0, 0, 0, None
        self.thread = threading.get_ident()
        self.begin = time.perf_counter()

    seconds = property(lambda self: self.end - self.begin)
    own_seconds = property(lambda self: self.end - self.begin - self.inner)


class Recording:
    """The spans of one step: `spans` in the order in which they began, without the parts of splits, which are `parts`.

    memory     [(time, resident bytes)]
    threads    {identifier: name} of those with spans
    """

    def __init__(self):
        self.spans, self.parts, self.memory = [], [], []
        self.threads = {threading.get_ident(): "main"}
        self._stacks = threading.local()
        self._next_memory = 0.0

    step = property(lambda self: self.spans[0])

    def open(self, kind, name, phase="", layer=""):
        """Begin a span inside the one that is open in this thread."""
        stack = self._stack()
        span = Span(kind, name, phase, layer, stack[-1] if stack else None)
        stack.append(span)
        self.spans.append(span)
        return span

    def close(self):
        """End the span that was opened last in this thread."""
        span = self._stack().pop()
        span.end = time.perf_counter()
        if span.parent:
            span.parent.inner += span.seconds
        return span

    def thread_names(self):
        """{identifier: name} of all threads, also of the pool's."""
        names = dict(self.threads)
        workers = sorted({part[0] for part in self.parts} - set(names))
        return names | {thread: f"pool worker {i + 1}" for i, thread in enumerate(workers)}

    @contextlib.contextmanager
    def span(self, kind, name, phase="", layer=""):
        """The span of a block."""
        self.open(kind, name, phase, layer)
        try:
            yield
        finally:
            self.close()

    def extend(self, span):
        """The span, closed last in this thread, lasts until now."""
        now = time.perf_counter()
        if span.parent:
            span.parent.inner += now - span.end
        span.end = now

    def note_memory(self):
        """Read the memory of the process, if the last time is long enough ago."""
        now = time.perf_counter()
        if now >= self._next_memory:
            self.memory.append((now, resident_bytes()))
            self._next_memory = now + _MEMORY_INTERVAL

    def _stack(self):
        if not hasattr(self._stacks, "open"):
            self._stacks.open = []
            self.threads.setdefault(threading.get_ident(), threading.current_thread().name)
        return self._stacks.open


class Profiler:
    """Records steps of a Trainer (train_gpt2.py). `steps`: their Recordings."""

    def __init__(self, trainer):
        self.trainer, self.steps = trainer, []
        self.names = {id(module): name for name, module in trainer.model.named_modules()}
        xp = xp_of(trainer.flat.data)
        self.synchronize = (lambda: None) if xp is np else (lambda: xp.cuda.get_current_stream().synchronize())

    def step(self, loader):
        """trainer.step(loader), recorded; returns the same."""
        recording = Recording()
        with contextlib.ExitStack() as stack:
            for owner, name, wrapper in self._wrappers(recording, loader):
                stack.enter_context(_replaced(owner, name, wrapper))
            stack.enter_context(observe(OpObserver(recording, self.names, self.synchronize)))
            with recording.span("step", f"step {self.trainer.done + 1}"):
                result = self.trainer.step(loader)
        self.steps.append(recording)
        return result

    def _wrappers(self, recording, loader):
        """(object, name of its method, what replaces it during the step)"""
        trainer, reducer = self.trainer, self.trainer.reducer
        yield loader, "batch", _phase(recording, loader.batch, "data")
        yield trainer, "micro_step", _micro_batch(recording, trainer.micro_step)
        yield trainer.model, "loss", _forward_then_backward(recording, trainer.model.loss)
        yield reducer, "finish", _phase(recording, reducer.finish, "sum of gradients")
        yield reducer, "carry", _phase(recording, reducer.carry, "sum of micro-batches")
        yield reducer, "grad_norm", _phase(recording, reducer.grad_norm, "gradient norm")
        yield trainer, "gather_losses", _phase(recording, trainer.gather_losses, "losses of all ranks")
        yield trainer.optimizer, "step", _phase(recording, trainer.optimizer.step, "optimizer")
        if reducer.shards:
            gather = _phase(recording, reducer.all_gather_weights, "all-gather of weights")
            yield reducer, "all_gather_weights", gather
        if trainer.world.size > 1:
            yield trainer.world, "collective", _timed_collective(recording, trainer.world.collective)
        yield POOL, "split", _timed_split(recording, POOL.split)


class OpObserver:
    """Records ops and layers; for `observe` (function.py).

    In backward an op lasts until the gradients of its parameters have been written: kernels compute these last.

    names          {id of a module: its name}
    synchronize    called at the begin and the end of each op: waits for a GPU
    """

    def __init__(self, recording, names, synchronize):
        self.recording, self.names, self.synchronize, self.path = recording, names, synchronize, [""]
        self._last = None                                         # (node, its span) of the last backward
        self._in_backward = 0                                     # backwards that are running: one, or one in another

    @contextlib.contextmanager
    def inside(self, module):
        """Within the block, ops belong to this module."""
        name = self.names.get(id(module), self.path[-1])
        self.path.append(name)
        with self.recording.span("layer", name):
            yield
        self.path.pop()

    def before(self, node):
        """Called before forward and before backward of a node. In backward, `work` has been noted."""
        self._last, phase = None, "backward"
        if node.work is None:
            node.layer, phase = self.path[-1], "recompute" if self._in_backward else "forward"
        self.recording.note_memory()
        self.synchronize()
        self._in_backward += phase == "backward"
        self.recording.open("op", node.name, phase, node.layer)

    def after_forward(self, node, arrays, results):
        """Called with the op's inputs and its results."""
        self.synchronize()
        span = self.recording.close()
        span.flops, node.work = products(node, arrays, results)
        span.bytes = forward_bytes(node, arrays, results)

    def after_backward(self, node, dout, dinputs):
        """Called with an op's incoming and outgoing gradients."""
        self.synchronize()
        self._in_backward -= 1
        span = self.recording.close()
        span.flops, span.bytes = node.work, backward_bytes(node, dout, dinputs)
        self._last = node, span

    def after_leaf(self, node, i, leaf, gradient):
        """Called when a gradient has been added to that of a leaf: some are computed only then."""
        if self._last and self._last[0] is node:
            self.synchronize()
            self.recording.extend(self._last[1])


def _phase(recording, method, name):
    def timed(*args, **kwargs):
        with recording.span("phase", name):
            return method(*args, **kwargs)

    return timed


def _micro_batch(recording, micro_step):
    """The forward pass is model.loss, which opens the backward pass when it is done; here that ends."""

    def timed(*args):
        with recording.span("phase", "micro-batch"):
            result = micro_step(*args)
            recording.close()
        return result

    return timed


def _forward_then_backward(recording, loss):
    def timed(x, y):
        with recording.span("phase", "forward"):
            result = loss(x, y)
        recording.open("phase", "backward")
        return result

    return timed


def _timed_collective(recording, collective):
    @contextlib.contextmanager
    def timed(name, what="", moves_data=True):
        recording.open("wait", f"waiting for other ranks: {name}")
        with collective(name, what, moves_data):
            recording.close()
            recording.open("comm", name)
            yield
        recording.close()

    return timed


def _timed_split(recording, split):
    """Records the part of each thread."""

    def timed(function, *args, **kwargs):
        module = getattr(function, "__module__", "").split(".")[-1]
        name = f"{module}.{getattr(function, '__name__', 'part').strip('_<>')}"

        def part(lo, hi, *rest):
            begin, thread = time.perf_counter(), threading.get_ident()
            try:
                function(lo, hi, *rest)
            finally:
                recording.parts.append((thread, name, begin, time.perf_counter()))

        split(part, *args, **kwargs)

    return timed


@contextlib.contextmanager
def _replaced(owner, name, wrapper):
    """Within the block the object has this method in place of its class's."""
    setattr(owner, name, wrapper)
    try:
        yield
    finally:
        delattr(owner, name)
