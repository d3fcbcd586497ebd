"""The threads that run compiled kernels (spread.py). Between two kernels they stay inside compiled code, waiting for
the next one, so a kernel is started in about a microsecond, without Python's lock.

A thread that has waited in vain for `_PATIENCE` seconds sleeps, on a queue of Python, until it is called.
"""

import atexit
import contextlib
import os
import queue
import threading
import time

import numpy as np

from ops.kernels.cpu.spread import FAILED, HALF, JOB, PARTS, WAIT, WORDS, serve
from tinygrad2.system.threads import POOL, available_cores, planned_threads

_PATIENCE = 1e-3  # seconds: longer than what Python does between two kernels, even with cold caches


class Team:
    """The compiled side of POOL, which calls `run`, one thread at a time."""

    def __init__(self):
        self._forget()
        atexit.register(self._rest)                               # no thread may be in compiled code while Python ends
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self):
        memory = np.zeros(WORDS + 16, np.int64)
        start = -memory.ctypes.data % 128 // 8                    # the words begin with a cache line
        self.words = memory[start : start + WORDS]
        self.address = self.words.ctypes.data
        self.threads, self.asleep = 0, []                         # queues, one of each thread that sleeps

    def run(self, kernel, n, args, parts):
        """kernel(lo, hi, *args) for all parts of range(n). Raises MemoryError if a part of it had no memory."""
        with contextlib.suppress(RuntimeError):                   # the system refuses more threads: fewer do all parts
            while self.threads < parts - 1:
                self._start()
        self.words[PARTS] = parts
        for _ in range(min(parts - 1, len(self.asleep))):
            self.asleep.pop().put(None)
        kernel(-self.address, n, *args)
        if self.words[FAILED]:
            self.words[FAILED] = 0
            raise MemoryError(f"no memory left for the work space of {kernel.__name__}")

    def _start(self):
        if not self.threads:
            self._choose_wait()
        threading.Thread(target=self._loop, args=(self.words,), name="tinygrad2 kernels", daemon=True).start()
        self.threads += 1

    def _choose_wait(self):
        """Set how often a thread looks for work before it sleeps: for _PATIENCE seconds, if it has a core."""
        self.words[WAIT], times = 1000, []
        for _ in range(5):
            begin = time.perf_counter()
            serve(self.address, self.words[JOB] >> HALF)
            times.append((time.perf_counter() - begin) / 1000)
        has_core = planned_threads() <= len(available_cores())
        self.words[WAIT] = int(_PATIENCE / min(times)) if has_core else 0

    def _loop(self, words):
        bell, job = queue.SimpleQueue(), int(words[JOB]) >> HALF
        address = words.ctypes.data
        while True:
            job = serve(address, job)
            self.asleep.append(bell)
            bell.get()

    def _rest(self):
        self.words[WAIT] = 0
        for _ in range(100):
            if len(self.asleep) >= self.threads:
                return
            time.sleep(0.001)


POOL.team = Team()
