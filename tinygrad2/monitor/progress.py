"""What a training tells: on the screen one line per step, with a bar and the time that is left; in a file, JSON lines.

On a terminal the line is written over itself, and every `keep_every`-th one stays. Into a file or a pipe goes every
line, plain.
"""

import os
import shutil
import sys
import time

_BAR = 12  # characters


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


def is_live(stream):
    """Can a line on this stream be written over? Open MPI gives its ranks a terminal even where it writes to a file."""
    return stream.isatty() and "OMPI_COMM_WORLD_SIZE" not in os.environ


class Progress:
    """Steps done of `total`, of which `start` were done before. Only rank 0 gets an enabled one."""

    def __init__(self, total, keep_every=1, enabled=True, stream=None, start=0):
        self.total, self.keep_every, self.enabled, self.start = total, keep_every, enabled, start
        self.stream = stream or sys.stdout
        self.live = is_live(self.stream)
        self.begin = time.perf_counter()
        self.first_done = None  # when step 1 was over, and how many were done then
        self._open = False  # a line that may still be written over stands on the terminal

    def step(self, done, text):
        """Show that `done` steps are done; `text` says how the last one went."""
        if not self.enabled:
            return
        filled = _BAR * done // self.total
        left = self._seconds_left(done)
        width = len(str(self.total))
        bar = "#" * filled + "-" * (_BAR - filled)
        line = f"step {done:{width}d}/{self.total} [{bar}] {text} | {duration(left)} left"
        keep = not self.live or done == self.total or done % self.keep_every == 0 or done == 1
        if not keep:
            line = line[: shutil.get_terminal_size().columns - 1]  # a line that wraps could not be written over
        erase = "\r\x1b[K" if self.live else ""
        self.stream.write(erase + line + ("\n" if keep else ""))
        self.stream.flush()
        self._open = not keep

    def _seconds_left(self, done):
        """From the mean of all steps but the first, which may have had kernels to compile."""
        now = time.perf_counter()
        if self.first_done is None:
            self.first_done = now, done
            return (now - self.begin) / max(1, done - self.start) * (self.total - done)
        then, so_far = self.first_done
        return (now - then) / max(1, done - so_far) * (self.total - done)

    def note(self, text):
        """A line of its own between the steps."""
        if not self.enabled:
            return
        self.stream.write(("\r\x1b[K" if self._open else "") + text + "\n")
        self.stream.flush()
        self._open = False


class Meter:
    """Bytes done of a long piece of work, with rate and time left; says nothing about work of less than two seconds.

    On a terminal one line is written over itself; into a file goes a line every ten seconds.
    """

    def __init__(self, what, total, done=0, stream=None):
        self.what, self.total, self.done, self.start = what, total, done, done
        self.stream = stream or sys.stdout
        self.live = is_live(self.stream)
        self.begin = time.perf_counter()
        self.last = self.begin + 2 - (0.2 if self.live else 10)  # the first line comes after two seconds
        self._shown = False

    def add(self, n):
        """`n` more bytes are done."""
        self.done += n
        now = time.perf_counter()
        if now - self.last < (0.2 if self.live else 10):
            return
        self.last, self._shown = now, True
        rate = max(1e-9, (self.done - self.start) / (now - self.begin))
        left = duration(max(0, self.total - self.done) / rate)
        line = (f"{self.what} {self.done / 1e6:,.0f} of {self.total / 1e6:,.0f} MB "
                f"({self.done / max(1, self.total):.0%}) | {rate / 1e6:.1f} MB/s | {left} left")  # fmt: skip
        self.stream.write(f"\r\x1b[K{line}" if self.live else line + "\n")
        self.stream.flush()

    def close(self):
        """The work is over."""
        if self._shown:
            seconds = duration(time.perf_counter() - self.begin)
            done = f"{self.what} {(self.done - self.start) / 1e6:,.0f} MB took {seconds}\n"
            self.stream.write(("\r\x1b[K" if self.live else "") + done)
            self.stream.flush()


class Live:
    """Things done of `total`, with rate and time left; says nothing about work of less than two seconds.

    On a terminal one line is written over itself; into a file goes a line every ten seconds. `unit` names the things,
    `done` of which were there before; `stream` is stdout where none is given.
    """

    def __init__(self, what, unit, total, done=0, stream=None):
        self.what, self.unit, self.total, self.done, self.start = what, unit, total, done, done
        self.stream = stream or sys.stdout
        self.live = is_live(self.stream)
        self.begin = time.perf_counter()
        self.pause = 0.2 if self.live else 10
        self.last = self.begin + 2 - self.pause
        self._open = False

    def add(self, n, text=""):
        """`n` more are done; `text` says how they went."""
        self.done += n
        now = time.perf_counter()
        if now - self.last < self.pause:
            return
        rate = max(1e-9, (self.done - self.start) / (now - self.begin))
        left = duration(max(0, self.total - self.done) / rate)
        line = f"{self.what} {self.done:,} of {self.total:,} ({self.done / max(1, self.total):.0%}) | "
        line += f"{text} | " * bool(text) + f"{rate:,.1f} {self.unit}/s | {left} left"
        self.stream.write(f"\r\x1b[K{line}" if self.live else line + "\n")
        self.stream.flush()
        self.last, self._open = now, self.live

    def close(self):
        """All is done."""
        if self._open:
            self.stream.write("\r\x1b[K")
            self.stream.flush()
