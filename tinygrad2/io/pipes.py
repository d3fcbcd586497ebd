"""Inputs that are read once, from start to end, whatever they come from: a file, a pipe, a terminal, standard input.

A pipe is waited for, since what writes into it may need time, but never for ever: a pipe that nobody has opened for
writing is an error after NO_WRITER seconds, one through which nothing comes after SILENT seconds.
"""

import io
import os
import select
import stat
import time

from tinygrad2.errors import UserError
from tinygrad2.io.open_file import NotRegular, kind_of, open_file

NO_WRITER = 10.0
SILENT = 600.0
_LOOK_AGAIN = 0.05  # seconds


def open_input(path):
    """A binary file with the content of a regular file, a pipe, a terminal, or "-": standard input.

    Raises UserError if it cannot be read, or for any other kind of file. Reading raises UserError if nothing comes.
    """
    path = os.fspath(path)
    try:
        if path == "-":
            return Pipe(os.dup(0), "-")
        mode = os.stat(path).st_mode
        if stat.S_ISFIFO(mode):
            return open_pipe(path)
        if stat.S_ISCHR(mode) and os.path.samefile(path, os.devnull):
            return io.BytesIO()
        if stat.S_ISCHR(mode):
            return _open_terminal(path)
        return open_file(path)
    except OSError as error:
        what = "standard input cannot" if path == "-" else "cannot"
        raise UserError(f"{path}: {what} be read ({error.strerror})") from None


def open_pipe(path):
    """The Pipe of that name. Raises OSError if it cannot be opened."""
    return Pipe(os.open(path, os.O_RDONLY | os.O_NONBLOCK), path)


def _open_terminal(path):
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    if not os.isatty(handle):
        mode = os.fstat(handle).st_mode
        os.close(handle)
        raise NotRegular(f"{path}: is {kind_of(mode)}; give the name of a file")
    os.set_blocking(handle, True)
    return os.fdopen(handle, "rb")


class Pipe(io.RawIOBase):
    """A binary file that is read from an open descriptor, and closes it. Raises UserError if nothing comes for too
    long; for what a terminal's user types there is no limit."""

    def __init__(self, handle, name):
        self.handle, self.name = handle, name
        self._is_patient = os.name == "nt" or os.isatty(handle)  # Windows cannot wait for a pipe with a limit
        self._begun = time.monotonic()

    def readable(self):
        """Yes."""
        return True

    def fileno(self):
        """The descriptor."""
        return self.handle

    def readinto(self, buffer):
        """Fills a part of the buffer; returns how many bytes, 0 at the end."""
        while True:
            if not self._is_patient and os.get_blocking(self.handle):
                self._wait()
            try:
                data = os.read(self.handle, len(buffer))
            except BlockingIOError:  # there is a writer
                self._wait()
                continue
            if data or self._is_patient or self._ready(0):
                buffer[: len(data)] = data
                return len(data)
            self._wait_for_writer()

    def _wait(self):
        if not self._ready(SILENT):
            raise UserError(f"{self.name}: nothing has come through this pipe for {SILENT:.0f} seconds; is the program "
                            "that writes into it still running?")  # fmt: skip

    def _wait_for_writer(self):
        """A pipe without one reads as if at its end, except that there never was one."""
        if time.monotonic() > self._begun + NO_WRITER:
            raise UserError(f"{self.name}: is a pipe that nobody has opened for writing in {NO_WRITER:.0f} seconds; "
                            "start the program that writes into it, or give the name of a file")  # fmt: skip
        time.sleep(_LOOK_AGAIN)

    def _ready(self, seconds):
        return bool(select.select([self.handle], [], [], seconds)[0])

    def close(self):
        """Close the descriptor."""
        if not self.closed:
            os.close(self.handle)
        super().close()
