"""The status table: a few bytes of shared memory per rank of a host, in which each can see what the others do.

    number, name     the collective the rank is in, or was in last
    inside, since    whether it is in it now, and since when it has been in it, or out of it
    beat             when its watchdog was last awake: that of a stopped process is stale
    location         file, line and function of its main thread, written when another rank asks for it
    stopping         the signal by which the user, or mpirun, has asked it to stop, or 0; its guard writes it

Imports nothing that loads NumPy.
"""

import mmap
import os
import signal
import struct
import tempfile
import time

from tinygrad2.errors import to_bytes
from tinygrad2.system.temporary import create_file, remove_files_of, sweep

_ROW = struct.Struct("qqddqqq120s200s")  # number, inside, since, beat, pid, asked, stopping, name, location
_BEAT, _PID, _ASKED, _STOPPING, _NAME, _LOCATION = 24, 32, 40, 48, 56, 176  # byte offsets in a row
_FILE = "status"  # the name of the table's temporary file
EXITING = "exiting"  # the name in the row of a rank that ends, and has reported why


class Status:
    """One row of the table: the state of one rank."""

    def __init__(self, number, inside, since, beat, pid, asked, stopping, name, location):
        self.number, self.inside, self.since, self.beat, self.pid, self.asked = number, inside, since, beat, pid, asked
        self.stopping = stopping
        name, location = (text.split(b"\0")[0].decode("utf-8", "replace") for text in (name, location))
        self.name, self.location = name, location


class StatusTable:
    """Shared memory with one row per rank of this host; `own` is the index of this rank's row.

    path    of the file that holds it, or its descriptor. None: private to this process
    """

    def __init__(self, path=None, rows=1, own=0):
        self.rows, self.own = rows, own
        if path is None:
            self._memory = mmap.mmap(-1, _ROW.size * rows)
        else:
            with open(path, "r+b", closefd=isinstance(path, str)) as file:
                self._memory = mmap.mmap(file.fileno(), _ROW.size * rows)

    @staticmethod
    def create_file(rows):
        """Create a file of the required size; returns its path. The caller removes it once all ranks have opened it."""
        for folder in ["/dev/shm"] * os.access("/dev/shm", os.W_OK) + [tempfile.gettempdir()]:
            sweep(folder)
            handle, path = create_file(folder, _FILE, 0o600)  # stays open, and locked: nobody sweeps it
            try:
                os.posix_fallocate(handle, 0, _ROW.size * rows)  # else a full /dev/shm ends the ranks by SIGBUS
                return path
            except OSError as error:
                problem = error
                os.unlink(path)
                os.close(handle)
        raise problem

    @staticmethod
    def remove_file(creator):
        """Remove what a process has created that was killed before it could do so itself."""
        for folder in ("/dev/shm", tempfile.gettempdir()):
            remove_files_of(creator, folder, _FILE)

    def _pack(self, row, offset, form, *values):
        struct.pack_into(form, self._memory, row * _ROW.size + offset, *values)

    def write(self, number, inside, since, name):
        """Write this rank's row, except the fields that watchdogs write."""
        self._pack(self.own, 0, "qqd", number, inside, since)
        self._pack(self.own, _PID, "q", os.getpid())
        self._pack(self.own, _NAME, "120s", to_bytes(name)[:119])

    def beat(self):
        """Record that this rank's watchdog is awake. Returns True if another rank asks for its location."""
        self._pack(self.own, _BEAT, "d", time.monotonic())
        return self.read(self.own).asked > 0

    def ask(self, row):
        """Ask another rank for its location."""
        self._pack(row, _ASKED, "q", 1)

    def answer(self, location):
        """Write this rank's location."""
        self._pack(self.own, _LOCATION, "200s", to_bytes(location[-199:])[:199])
        self._pack(self.own, _ASKED, "q", 0)

    def stop(self, number):
        """Record that this rank has been asked to stop by this signal."""
        self._pack(self.own, _STOPPING, "q", number)

    def read(self, row):
        """Returns the Status of the rank in this row."""
        return Status(*_ROW.unpack_from(self._memory, row * _ROW.size))


def describe_death(code, status=None):
    """How a process ended that did not report it: `code` as of os.waitstatus_to_exitcode, None if it is unknown;
    `status` the Status of its rank, if there is one."""
    if code is None:
        how, why = "was killed from outside", ""
    elif code >= 0:
        how, why = f"ended with exit code {code}, without a message", ": a library called exit"
    else:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        how, why = f"was killed by {name}", _CAUSES.get(name, "")
    where = ""
    if status is not None and status.number:
        where = f", {'in' if status.inside else 'after'} #{status.number} '{status.name}'"
    return how + where + why


_CAUSES = {
    "SIGKILL": ": out of memory (see dmesg), or killed from outside",
    "SIGBUS": ": a mapped file was truncated, or /dev/shm is full",
    **dict.fromkeys(("SIGSEGV", "SIGABRT", "SIGFPE", "SIGILL"), ": a library crashed"),
}
