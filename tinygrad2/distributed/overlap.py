"""Overlap: gradients are sent to the other ranks while backward is still computing more of them.

Between hosts a bucket of gradients takes as long as some layers of the backward pass. No MPI that pip installs makes
progress unless it is called, so a separate thread calls it; it costs the computation little, because most of the time
it sleeps or copies (docs/scaling.md has the figures). Between GPUs NCCL's sums run on a stream of their own, which
needs no thread: the host puts them there, and events say what waits for what.
"""

import contextlib
import contextvars
import queue
import threading
import time

from tinygrad2.backend import xp_of
from tinygrad2.function import observe
from tinygrad2.gpu.device import choose_gpu


class OverlappedReduction:
    """Sums each bucket in a separate thread as soon as backward has finished with it.

    The first step shows how many gradients each parameter gets and in which order buckets become complete; all ranks
    use rank 0's order, because all must sum the buckets in the same order. When parameters are frozen or no longer
    frozen, the next step is a first one again.

    expected   {id of a parameter: gradients it gets in a backward pass}, None until `learn`
    order      the numbers of the buckets in the order in which they are summed, None until `learn`
    """

    def __init__(self, reducer):
        self.reducer, self.expected, self.order = reducer, None, None
        self._buckets_of, self._within = {}, {}               # id(parameter) -> bucket numbers; number -> parameters
        for parameter, part in zip(reducer.flat.parameters, reducer.flat.slices.values()):
            buckets = range(part.start // reducer.bucket, (part.stop - 1) // reducer.bucket + 1)
            self._buckets_of[id(parameter)] = buckets
            for bucket in buckets:
                self._within.setdefault(bucket, []).append(parameter)
        self._jobs, self._thread, self._error, self._frozen = None, None, None, None

    @contextlib.contextmanager
    def watching(self):
        """Wrap forward and backward of the last micro-batch in this."""
        if (frozen := self.reducer.flat.frozen) != self._frozen:
            self.expected = self.order = None
            self._frozen = frozen
        self._arrivals = dict.fromkeys(self._buckets_of, 0)
        self._log = []                                        # ids of parameters, one for each gradient that arrived
        self._sent = 0
        if self.order is not None:
            self._missing = {bucket: sum(self.expected[id(p)] > 0 for p in parameters)
                             for bucket, parameters in self._within.items()}  # fmt: skip
            self._start()
        with observe(self):
            yield

    def _start(self):
        self._jobs, self._error = queue.SimpleQueue(), None
        run, args = contextvars.copy_context().run, (self._work, self._jobs)  # what holds here holds there
        self._thread = threading.Thread(target=run, args=args, name="tinygrad2 reduction")
        self._thread.daemon = True
        self._thread.start()

    def inside(self, module):
        """As an observer (function.py): nothing to do."""
        return contextlib.nullcontext()

    def before(self, node):
        """As an observer: nothing to do."""

    def after_forward(self, node, arrays, results):
        """As an observer: nothing to do."""

    def after_backward(self, node, dout, dinputs):
        """As an observer: nothing to do."""

    def after_leaf(self, node, i, leaf, gradient):
        """As an observer: a parameter has received a gradient; send the buckets that are complete now."""
        key = id(leaf)
        if key not in self._arrivals:
            return
        self._arrivals[key] += 1
        if self.order is None:
            self._log.append(key)
        elif self._arrivals[key] == self.expected[key]:
            for bucket in self._buckets_of[key]:
                self._missing[bucket] -= 1
            while self._sent < len(self.order) and not self._missing[self.order[self._sent]]:
                self._send()

    def _send(self):
        bucket = self.order[self._sent]
        for parameter in self._within.get(bucket, ()):
            parameter.materialize_grad()                      # the zeros of one that got no gradient
        self._sent += 1
        self._put(self.reducer.buckets[bucket])

    def _put(self, bucket):
        self._jobs.put(bucket)

    def _work(self, jobs):
        choose_gpu(xp_of(self.reducer.flat.data))             # CUDA's choice holds for one thread
        bucket = jobs.get()                                   # the collective begins with the first bucket
        try:
            with self.reducer.collective(moves_data=False):
                while bucket is not None:
                    self.reducer.sum_bucket(self.reducer.flat.grad_buffer, bucket)
                    bucket = jobs.get()
        except BaseException as error:
            self._error = error

    def finish(self):
        """Send the remaining buckets, and wait until all sums are complete. Raises what the thread raised."""
        while self._sent < len(self.order):
            self._send()
        self._jobs.put(None)
        begin = time.perf_counter()
        self._thread.join()
        self.reducer.world.comm_seconds += time.perf_counter() - begin
        if self._error:
            raise self._error

    def learn(self):
        """After the first step, in which nothing is sent during backward: set `expected` and `order`."""
        self.expected = self._arrivals
        when = {key: i for i, key in enumerate(self._log)}    # the last gradient of each
        ready = {bucket: max(when.get(id(p), -1) for p in parameters) for bucket, parameters in self._within.items()}
        order = sorted(range(len(self.reducer.buckets)), key=lambda bucket: ready.get(bucket, -1))
        self.order = self.reducer.world.broadcast_object(order, "the order of buckets")


class OverlappedNccl(OverlappedReduction):
    """The same for GPUs: NCCL sums each bucket on a stream of its own while the GPU computes backward. The host waits
    for neither, so that a rank that is missing is noticed when its losses are read (training/lookahead.py)."""

    def __init__(self, reducer):
        super().__init__(reducer)
        self.cuda = xp_of(reducer.flat.data).cuda
        self.stream = self.cuda.Stream(non_blocking=True)

    def _start(self):
        """No thread."""

    def _put(self, bucket):
        self.stream.wait_event(self.cuda.get_current_stream().record())       # until these gradients are there
        with self.stream:
            self.reducer.sum_bucket(self.reducer.flat.grad_buffer, bucket)

    def finish(self):
        """Send the remaining buckets. What the GPU computes from here on waits for the sums."""
        with self.reducer.collective(moves_data=False):
            while self._sent < len(self.order):
                self._send()
            self.cuda.get_current_stream().wait_event(self.stream.record())
