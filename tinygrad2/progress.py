"""What a training tells: on the screen one line per step, with a bar and the time that is left; in a file, JSON lines.

On a terminal the line is written over itself, and every `keep_every`-th one stays. Into a file or a pipe goes every
line, plain.
"""

import json
import shutil
import sys
import time

from tinygrad2.files import UserError

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


class Progress:
    """Steps done of `total`. Only rank 0 gets an enabled one."""

    def __init__(self, total, keep_every=1, enabled=True, stream=None):
        self.total, self.keep_every, self.enabled = total, keep_every, enabled
        self.stream = stream or sys.stdout
        self.live = self.stream.isatty()
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
            return (now - self.begin) / done * (self.total - done)
        then, so_far = self.first_done
        return (now - then) / max(1, done - so_far) * (self.total - done)

    def note(self, text):
        """A line of its own between the steps."""
        if not self.enabled:
            return
        self.stream.write(("\r\x1b[K" if self._open else "") + text + "\n")
        self.stream.flush()
        self._open = False


class MetricsFile:
    """One JSON object per line, written at once: whoever reads along, or after a crash, finds every finished step.

    An empty path means no file. A file that is there already is begun anew.
    Raises UserError where it cannot be written.
    """

    def __init__(self, path):
        self.path = path
        self._write("w", "")

    def append(self, record):
        self._write("a", json.dumps(record) + "\n")

    def _write(self, mode, text):
        if not self.path:
            return
        try:
            with open(self.path, mode, encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); choose another file") from None
