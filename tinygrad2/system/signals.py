"""What ends a training early, after the current step and with its state saved.

    SIGINT, SIGTERM   Ctrl-C, kill; a second one exits at once
    SIGUSR1           batch systems send it before the time limit if asked to, and it is the one signal that every
                      mpirun forwards to its ranks without ending them itself
    SIGHUP            the terminal is gone, for example with the ssh connection; not under nohup, which ignores it
    SIGXCPU           the time of processors that a limit allows is nearly used up (ulimit -t)
    SIGPIPE           nobody reads our standard output any more, as in `... | head`; Python raises BrokenPipeError
"""

import os
import signal
import sys
import threading
import time

from tinygrad2.errors import to_bytes
from tinygrad2.system.streams import is_session, write_descriptor

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP", "SIGXCPU")
STOP_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
_SIGHUP, _SIGPIPE, SIGXCPU = (getattr(signal, *pair) for pair in (("SIGHUP", 1), ("SIGPIPE", 13), ("SIGXCPU", 24)))
REPEATED = (_SIGHUP, SIGXCPU)  # the system may send them several times: a second one asks for nothing else
_TO_SAVE = 10  # the part of a limit of processor time that is kept for saving
leave_now = os._exit  # the original: distributed/launch.py replaces os._exit by one that reports its caller
_AGAIN = b"\nstopping after this step, and saving; press again to stop immediately\n"
_CPU_LIMIT = b"\nthe limit of processor time (ulimit -t) is reached: stopping after this step, and saving\n"
_REPEAT_SECONDS = 0.5  # a Ctrl-C reaches a rank twice, from the terminal and from mpirun: within this they count as one


def _do_nothing(number, frame):
    """A handler. Unlike SIG_IGN it ends with this process: the programs that it starts are not affected."""


class StopRequest:
    """Within `with StopRequest() as stop:` these signals set `stop.signal` instead of ending the process, and so does
    standard output if its reader exits (as SIGPIPE): what is printed after that is lost.

    signal    None, or the number of the signal that arrived
    verbose   print to stderr that the step is being finished
    """

    def __init__(self, verbose=True):
        self.signal, self.verbose = None, verbose
        self._before, self._when = {}, 0.0

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # handlers can be set only there
            for number in STOP_SIGNALS:
                if number != _SIGHUP or signal.getsignal(number) != signal.SIG_IGN:               # nohup
                    self._before[number] = signal.signal(number, self._take)
        self._stream = sys.stdout
        if hasattr(self._stream, "on_broken_pipe"):                # a ProtectedStream
            self._stream.on_broken_pipe = self._lose_reader
        return self

    def __exit__(self, *_):
        if hasattr(self._stream, "on_broken_pipe"):
            self._stream.on_broken_pipe = None
        for number, handler in self._before.items():
            signal.signal(number, _do_nothing if number == self.signal == SIGXCPU else handler)  # it comes again

    def _lose_reader(self):
        if self.signal is None:
            self.signal = _SIGPIPE
            if self.verbose:
                write_descriptor(2, b"\nnobody reads the output any more: stopping after this step, and saving\n")

    def _take(self, number, frame):
        if number in REPEATED and self.signal is not None:
            return  # not a second Ctrl-C
        if self.signal not in (None, *REPEATED, _SIGPIPE):  # after SIGHUP the system may send SIGTERM
            if number == self.signal and time.monotonic() - self._when < _REPEAT_SECONDS:
                return
            if is_session() and number == signal.SIGINT:
                raise KeyboardInterrupt  # as everywhere in a notebook, whose kernel goes on
            leave_now(128 + number)  # files are written under temporary names: none is left incomplete
        self.signal, self._when = number, time.monotonic()
        if self.verbose:  # not by print: the signal may have arrived in the middle of a print
            write_descriptor(2, _CPU_LIMIT if number == SIGXCPU else _AGAIN)


def watch_cpu_limit(name):
    """From now on the end of the time of processors that this process may use (ulimit -t) is one line of the program
    `name`, exit code 152, or what a StopRequest makes of it. At its hard limit the system kills a process, and
    `ulimit -t` sets both limits, so the soft one is moved to a tenth before, at least five seconds (of short ones
    half)."""
    if not hasattr(signal, "SIGXCPU") or threading.current_thread() is not threading.main_thread():
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard != resource.RLIM_INFINITY:
        soft = min(soft if soft != resource.RLIM_INFINITY else hard, hard - max(min(5, hard // 2), hard // _TO_SAVE))
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))

    def end(number, frame):
        write_descriptor(2, to_bytes(f"{name}: the limit of processor time (ulimit -t) is reached\n"))
        leave_now(128 + number)

    if signal.getsignal(signal.SIGXCPU) == signal.SIG_DFL:
        signal.signal(signal.SIGXCPU, end)
