"""Ctrl-C and SIGTERM while training: the first asks for an end after this step, the second ends at once."""

import os
import signal
import threading


class StopRequest:
    """Within `with StopRequest() as stop:` the signals SIGINT and SIGTERM set `stop.signal` instead of raising.

    signal   None, or the number of the signal that came
    """

    def __init__(self, talk=True):
        self.signal, self.talk = None, talk
        self._before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number, frame):
        if self.signal is not None:
            os._exit(128 + number)  # whatever is half-written has a temporary name
        self.signal = number
        if self.talk:  # with os.write: the signal may have come in the middle of a print
            os.write(2, b"\nstopping after this step, and saving; once more to stop at once\n")
