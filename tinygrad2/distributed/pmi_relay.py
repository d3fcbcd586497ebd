"""What a rank's MPICH says to mpirun, passed on by its guard, so that MPI_Abort(0) does not end a job with code 0.

MPICH's mpirun gives each rank a socket (PMI_FD) for the messages by which the ranks find each other, and for the
request of MPI_Abort to end the job, with an exit code. A library may call it with 0, or 256, of which the system keeps
0; but what is aborted is not complete. Where there is no such socket, under Open MPI for example, this does nothing.
"""

import contextlib
import os
import re
import select
import socket

_JOB = re.compile(rb"cmd=my_kvsname [^\n]*kvsname=(\S+)")
_MACHINE_FILE = re.compile(rb"cmd=get_result [^\n]*value=(/\S*/hydra_hwloc_xmlfile_\w+)")
_ABORT = re.compile(rb"(cmd=abort[ ;]exitcode=)(-?\d+)")


class Relay:
    """Made before the fork; then the rank calls connect(), and the guard forward().

    sources    what the guard waits for: the rank's socket and mpirun's
    job        what the rank has learned of it: its name (b"job NAME"), and a file in which mpirun describes the machine
               (b"file PATH"), which MPICH leaves when a job is aborted; to be taken
    """

    def __init__(self):
        self.sources, self.job = [], []
        number = os.environ.get("PMI_FD", "")
        if number.isdecimal() and "HYDI_CONTROL_FD" in os.environ:
            with contextlib.suppress(OSError):
                self._mpirun = socket.socket(fileno=os.dup(int(number)))
                self._rank, self._theirs = socket.socketpair()
                self.sources = [self._rank, self._mpirun]

    def connect(self):
        """In the rank: its end of the socket gets the number that MPICH expects."""
        if self.sources:
            os.dup2(self._theirs.fileno(), int(os.environ["PMI_FD"]))
            for end in (*self.sources, self._theirs):
                end.close()

    def forward(self, ready, before_abort):
        """Pass on what can be read from those of the sources that are in `ready`, without waiting for more.

        before_abort    called before the request to end the job is passed on
        """
        if self.sources and self._theirs.fileno() >= 0:
            self._theirs.close()  # so that the guard sees the end of the rank's
        for source, other in ((self._rank, self._mpirun), (self._mpirun, self._rank)) if self.sources else ():
            if source in ready and select.select([source], [], [], 0)[0]:
                data = b""
                with contextlib.suppress(OSError):
                    data = source.recv(1 << 16)
                if not data:
                    self.sources = []
                    return
                self.job += [b"job " + name for name in _JOB.findall(data)]
                self.job += [b"file " + path for path in _MACHINE_FILE.findall(data)]
                if _ABORT.search(data):
                    before_abort()
                with contextlib.suppress(OSError):
                    other.sendall(_ABORT.sub(_not_0, data))


def _not_0(match):
    """The same length: other versions of the protocol begin with it."""
    code = int(match[2])
    return match[1] + (match[2] if code & 255 else b"%d" % (code + (1 if code >= 0 else -1)))
