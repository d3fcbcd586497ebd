"""How far a long piece of work is, in whatever it counts."""

import sys
import time

from tinygrad2.monitor.progress import duration, is_live


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
