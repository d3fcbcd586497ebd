"""Early: gradients that set out to the other ranks while backward is still computing others.

Between hosts a bucket of gradients takes as long as some layers of the backward pass. Neither MPI of the wheels moves
data while nobody calls it, so a thread of our own waits in MPI; it costs the computation little, because it sleeps or
copies most of the time (docs/scaling.md has the figures).
"""

import contextlib
import queue
import threading
import time

from tinygrad2.backend import choose_gpu, xp_of
from tinygrad2.function import observe


class Early:
    """Sends each bucket as soon as backward has finished with it, from a thread of its own.

    The first step shows how many gradients each parameter gets and in which order buckets are ready; rank 0's order
    holds for all, because buckets must travel in the same order everywhere.
    """

    def __init__(self, reducer):
        self.reducer, self.expected, self.order = reducer, None, None
        self._buckets_of, self._within = {}, {}               # id(parameter) -> buckets; bucket -> parameters
        for parameter, part in zip(reducer.flat.parameters, reducer.flat.slices.values()):
            numbers = self._numbers(part)
            self._buckets_of[id(parameter)] = numbers
            for number in numbers:
                self._within.setdefault(number, []).append(parameter)
        self._jobs, self._thread, self._error = None, None, None

    def _numbers(self, part):
        size = self.reducer.bucket
        return range(part.start // size, (part.stop - 1) // size + 1)

    @contextlib.contextmanager
    def watching(self):
        """Around the last micro-batch."""
        self._arrivals = dict.fromkeys(self._buckets_of, 0)
        self._last = []                                       # parameters by the time of their last gradient
        self._sent = 0
        if self.order is not None:
            self._missing = {number: sum(self.expected[id(p)] > 0 for p in within)
                             for number, within in self._within.items()}  # fmt: skip
            self._jobs, self._error = queue.SimpleQueue(), None
            self._thread = threading.Thread(target=self._work, args=(self._jobs,), name="tinygrad2 reduction")
            self._thread.daemon = True
            self._thread.start()
        with observe(self):
            yield

    def inside(self, module):
        """As an observer (function.py): nothing to do."""
        return contextlib.nullcontext()

    def after_forward(self, node, arrays, results):
        """As an observer: nothing to do."""

    def after_backward(self, node, dout, dinputs):
        """As an observer: nothing to do."""

    def after_leaf(self, node, i, leaf, gradient):
        """A gradient has come to a parameter: was it the last one of a bucket?"""
        key = id(leaf)
        if key not in self._arrivals:
            return
        self._arrivals[key] += 1
        if self.order is None:
            self._last.append(key)
        elif self._arrivals[key] == self.expected[key]:
            for number in self._buckets_of[key]:
                self._missing[number] -= 1
            while self._sent < len(self.order) and not self._missing[self.order[self._sent]]:
                self._send()

    def _send(self):
        number = self.order[self._sent]
        for parameter in self._within.get(number, ()):
            parameter.materialize_grad()                      # the zeros of one that got no gradient
        self._sent += 1
        self._jobs.put(self.reducer.buckets[number])

    def _work(self, jobs):
        choose_gpu(xp_of(self.reducer.flat.data))             # CUDA chooses one per thread
        bucket = jobs.get()                                   # the collective begins when there is something to send
        try:
            with self.reducer.travelling(is_moving=False):
                while bucket is not None:
                    self.reducer.sum_bucket(self.reducer.flat.grad_buffer, bucket)
                    bucket = jobs.get()
        except BaseException as error:
            self._error = error

    def finish(self):
        """Send what is left, and wait until all has arrived."""
        while self._sent < len(self.order):
            self._send()
        self._jobs.put(None)
        begin = time.perf_counter()
        self._thread.join()
        self.reducer.world.comm_seconds += time.perf_counter() - begin
        if self._error:
            raise self._error

    def learn(self):
        """After the first step, which nothing could be sent early in: what came when?"""
        self.expected = self._arrivals
        when = {key: place for place, key in enumerate(self._last)}
        ready = {number: max(when.get(id(p), -1) for p in within) for number, within in self._within.items()}
        order = sorted(range(len(self.reducer.buckets)), key=lambda number: ready.get(number, -1))
        self.order = self.reducer.world.broadcast_object(order, "the order of buckets")
