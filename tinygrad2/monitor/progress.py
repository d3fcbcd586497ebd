"""Progress on the screen: a line per step with a bar and the time left, and meters for other long work.

On a terminal the line is overwritten by the next one, and every `keep_every`-th one stays. Where lines cannot be
overwritten (a notebook, TERM=dumb, NO_COLOR) only those are written that stay, or one after _PAUSE seconds without any.
A file or a pipe gets every line, plain.
"""

import shutil
import sys
import time

from tinygrad2.system.streams import ERASE, can_overwrite, is_read_live

_BAR = 12  # characters
_PAUSE = 10  # seconds


def duration(seconds):
    """duration(75) -> "1m15s", duration(9) -> "9s", duration(7300) -> "2h01m"."""
    seconds = int(round(seconds))
    if seconds < 60:
        return f"{seconds}s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes}m{seconds:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m"


class Progress:
    """Steps done of `total`, of which `start` were done before. It is enabled on rank 0 only."""

    def __init__(self, total, keep_every=1, enabled=True, stream=None, start=0):
        self.total, self.keep_every, self.enabled, self.start = total, keep_every, enabled, start
        self.stream = stream or sys.stdout
        self.live = can_overwrite(self.stream)
        self.sparse = is_read_live(self.stream) and not self.live
        self.begin = self._last = time.perf_counter()             # _last: when a line was written
        self.first_done = None  # when the first step was over, and how many were done then
        self._open = False  # the terminal shows a line that is still to be overwritten

    def step(self, done, text):
        """`done` steps are done; `text` is about the last one."""
        if not self.enabled:
            return
        filled = _BAR * done // self.total
        left = self._seconds_left(done)
        width = len(str(self.total))
        bar = "#" * filled + "-" * (_BAR - filled)
        line = f"step {done:{width}d}/{self.total} [{bar}] {text} | {duration(left)} left"
        keep = done == self.total or done % self.keep_every == 0 or done == 1 or not (self.live or self.sparse)
        now = time.perf_counter()
        if self.sparse and not keep and now - self._last < _PAUSE:
            return
        self._last, keep = now, keep or self.sparse
        if not keep:
            line = line[: shutil.get_terminal_size().columns - 1]  # a line that wraps could not be overwritten
        erase = ERASE if self.live else ""
        self.stream.write(erase + line + ("\n" if keep else ""))
        self.stream.flush()
        self._open = not keep

    def _seconds_left(self, done):
        """From the mean of all steps but the first, which may have compiled kernels."""
        now = time.perf_counter()
        if self.first_done is None:
            self.first_done = now, done
            return (now - self.begin) / max(1, done - self.start) * (self.total - done)
        then, so_far = self.first_done
        return (now - then) / max(1, done - so_far) * (self.total - done)

    def note(self, text):
        """Print a separate line between those of the steps."""
        if not self.enabled:
            return
        self.stream.write((ERASE if self._open else "") + text + "\n")
        self.stream.flush()
        self._open = False


class Meter:
    """How far a long piece of work is, with rate and time left; prints nothing about work of less than two seconds.

    On a terminal one line is overwritten; a file gets a line every ten seconds.

    what      name of the work
    total     how much there is to do, in bytes for the unit "MB", else in the unit itself ("questions", ...)
    done      how much was done before
    stream    default: stdout
    """

    def __init__(self, what, total, unit="MB", done=0, stream=None):
        self.what, self.total, self.unit, self.done, self.start = what, total, unit, done, done
        self.stream = stream or sys.stdout
        self.live = can_overwrite(self.stream)
        self.pause = 0.2 if self.live else 10                     # seconds between two lines
        self.begin = time.perf_counter()
        self.last = self.begin + 2 - self.pause
        self._shown = False

    def add(self, n, text=""):
        """`n` more are done; `text` is shown with them."""
        self.done += n
        now = time.perf_counter()
        if now - self.last < self.pause:
            return
        self.last, self._shown = now, True
        rate = max(1e-9, (self.done - self.start) / (now - self.begin))
        left = duration(max(0, self.total - self.done) / rate)
        parts = [f"{self.what} {self._amount()} ({self.done / max(1, self.total):.0%})", text, self._rate(rate)]
        line = " | ".join([*filter(None, parts), f"{left} left"])
        self.stream.write(f"{ERASE}{line}" if self.live else line + "\n")
        self.stream.flush()

    def _amount(self):
        if self.unit == "MB":
            return f"{self.done / 1e6:,.0f} of {self.total / 1e6:,.0f} MB"
        return f"{self.done:,} of {self.total:,}"

    def _rate(self, rate):
        return f"{rate / 1e6 if self.unit == 'MB' else rate:,.1f} {self.unit}/s"

    def close(self):
        """The work is done: print how much it was, and how long it took."""
        if self._shown:
            n = self.done - self.start
            amount = f"{n / 1e6 if self.unit == 'MB' else n:,.0f} {self.unit}"
            erase = ERASE if self.live else ""
            self.stream.write(f"{erase}{self.what} {amount} took {duration(time.perf_counter() - self.begin)}\n")
            self.stream.flush()
