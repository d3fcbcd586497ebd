"""Milliseconds of work on a GPU, by events of the device.

    timer = CupyTimer()
    forward, backward = timer.measure([forward, backward], times=20)     lists of milliseconds

An event is a point in the stream of work, and the device notes when it gets there. Before each piece of work the device
adds up a large array: meanwhile the host gets ahead, so no launch is waited for, and nothing of what the work reads is
in a cache.
"""

import time

LEAD = 1 << 28  # floats, of the array that is added up: a quarter of a millisecond at 4 TB/s


class CupyTimer:
    def __init__(self, lead=LEAD):
        import cupy

        self.xp, self.array = cupy, cupy.ones(lead, dtype=cupy.float32)

    def event(self):
        event = self.xp.cuda.Event()
        event.record()
        return event

    def ms_between(self, begin, end):
        end.synchronize()
        return self.xp.cuda.get_elapsed_time(begin, end)

    def measure(self, works, times, warm_up=2):
        """The milliseconds of each of `works`, functions without arguments that run in turn, each so many times."""
        ms = [[] for _ in works]
        for i in range(-warm_up, times):
            events = []
            for work in works:
                self.array.sum()
                begin = self.event()
                work()
                events.append((begin, self.event()))
            for sums, (begin, end) in zip(ms, events):
                if i >= 0:
                    sums.append(self.ms_between(begin, end))
                else:
                    self.ms_between(begin, end)
        return ms


class TorchTimer(CupyTimer):
    """The same for PyTorch, and for tests without a GPU by the clock of the host."""

    def __init__(self, lead=LEAD):
        import torch

        self.torch, self.on_gpu = torch, torch.cuda.is_available()
        self.array = torch.ones(lead, device="cuda" if self.on_gpu else "cpu")

    def event(self):
        if not self.on_gpu:
            return time.perf_counter()
        event = self.torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def ms_between(self, begin, end):
        if not self.on_gpu:
            return 1e3 * (end - begin)
        end.synchronize()
        return begin.elapsed_time(end)
