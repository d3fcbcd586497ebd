"""Ctrl-C, SIGTERM and SIGUSR1 while training: the first requests a stop after this step, the second exits at once.

Batch systems send SIGUSR1 before the time limit if asked to, and it is the one signal that every mpirun forwards to its
ranks without ending them itself.
"""

import os
import signal
import threading
import time

from tinygrad2.system.streams import is_session, write_descriptor

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
leave_now = os._exit  # the original: distributed/launch.py replaces os._exit by one that reports its caller
_REPEAT_SECONDS = 0.5  # a Ctrl-C reaches a rank twice, from the terminal and from mpirun: within this they count as one


class StopRequest:
    """Within `with StopRequest() as stop:` SIGINT, SIGTERM and SIGUSR1 set `stop.signal` instead of raising.

    signal    None, or the number of the signal that arrived
    verbose   print to stderr that the step is being finished
    """

    def __init__(self, verbose=True):
        self.signal, self.verbose = None, verbose
        self._before, self._when = {}, 0.0

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # handlers can be set only there
            for number in STOP_SIGNALS:
                self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number, frame):
        if self.signal is not None:
            if number == self.signal and time.monotonic() - self._when < _REPEAT_SECONDS:
                return
            if is_session() and number == signal.SIGINT:
                raise KeyboardInterrupt  # as everywhere in a notebook, whose kernel goes on
            leave_now(128 + number)  # files are written under temporary names: none is left incomplete
        self.signal, self._when = number, time.monotonic()
        if self.verbose:  # not by print: the signal may have arrived in the middle of a print
            write_descriptor(2, b"\nstopping after this step, and saving; press again to stop immediately\n")
