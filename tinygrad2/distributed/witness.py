"""Witness: one process per host that reports a rank whose guard was killed.

mpirun reacts to a killed guard (guard.py) by killing all other guards at once, and with each guard its rank ends. None
of them can report anything. The witness is a process that mpirun does not know: it is in a session of its own, waits
for the processes of its host in the order in which they end, and reports the first guard that ended before its rank,
unless the ranks had said that they would end. Then it kills what is left (a stopped rank, for example) and ends, at the
latest a few seconds after the guards. mpirun waits until the last process that can write to its stderr has ended, so
the line arrives.

Needs Linux (pidfd, epoll); elsewhere there is no witness.
"""

import contextlib
import os
import select
import signal
import socket
import time

from tinygrad2.distributed.status import EXITING, StatusTable, describe_death
from tinygrad2.errors import to_bytes
from tinygrad2.system.process import rename_process
from tinygrad2.system.signals import leave_now
from tinygrad2.system.streams import write_descriptor

_LAST_SECONDS = 5.0     # within which mpirun ends the other ranks, once one has been killed
_TOGETHER_SECONDS = 0.05  # guards that end within this time of each other may have been killed by mpirun


def start_witness(descriptor, rows, size, hosts):
    """Fork: the child watches, and never returns.

    descriptor    of the status table
    rows          (rank, process, process of its guard) of each rank of this host, in the order of the table
    size, hosts   how many ranks and hosts there are in all
    """
    if not hasattr(os, "pidfd_open") or not hasattr(select, "epoll"):
        return
    with contextlib.suppress(OSError):
        if os.fork() == 0:
            try:
                table = StatusTable(descriptor, len(rows))
                _detach()
                rename_process(f"tinygrad2 witness of {len(rows)} ranks")
                _Witness(table, rows, size, hosts).run()
            finally:
                leave_now(0)


def _detach():
    """Keep only stderr, ignore what ends other processes, and leave the guard's session."""
    signal.set_wakeup_fd(-1)
    for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGTERM", "SIGTSTP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.closerange(3, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") > 0 else 1 << 16)


class _Witness:
    def __init__(self, table, rows, size, hosts):
        self.table, self.rows, self.size, self.hosts = table, rows, size, hosts
        self.epoll = select.epoll()
        self.handles = {}  # what the system makes readable when a process ends -> (row, is it a guard?)
        self.ranks, self.guards = set(), set()  # rows of those that are alive
        for i, (_, rank, guard) in enumerate(rows):
            for pid, is_guard in ((rank, False), (guard, True)):
                with contextlib.suppress(ProcessLookupError):
                    handle = os.pidfd_open(pid)
                    self.handles[handle] = i, is_guard
                    (self.guards if is_guard else self.ranks).add(i)
                    self.epoll.register(handle, select.EPOLLIN)

    def run(self):
        """Until all guards have ended."""
        killed = self._first_killed()
        if killed is not None and not (self.hosts > 1 and self._all_end_together()):
            self._report(killed)
        last = time.monotonic() + _LAST_SECONDS
        while self.guards and (killed is None or time.monotonic() < last):
            self._next_events(1.0)
        for handle, (i, is_guard) in self.handles.items():
            if not is_guard and i in self.ranks:
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)

    def _first_killed(self):
        """The row of the guard whose death ends the job; None if the job ends in another way, which is reported."""
        while self.guards:
            for i, is_guard in self._next_events(None):
                expected = i not in self.ranks or any(
                    row.name == EXITING or row.stopping for row in map(self.table.read, range(len(self.rows)))
                )
                if not is_guard or expected:
                    return None
                return i
        return None

    def _next_events(self, seconds):
        """[(row, is it a guard?)] of the processes that have ended, in the order in which they did."""
        ended = [self.handles[handle] for handle, _ in self.epoll.poll(seconds, 1 if seconds is None else -1)]
        for i, is_guard in ended:
            (self.guards if is_guard else self.ranks).discard(i)
        for handle in [handle for handle, what in self.handles.items() if what in ended]:
            self.epoll.unregister(handle)
            del self.handles[handle]
            os.close(handle)
        return ended

    def _all_end_together(self):
        """Have all guards of this host ended? Then mpirun may have killed them because of a rank on another host."""
        end = time.monotonic() + _TOGETHER_SECONDS
        while self.guards and (left := end - time.monotonic()) > 0:
            self._next_events(left)
        return not self.guards

    def _report(self, i):
        rank, pid, guard = self.rows[i]
        text = f"{describe_death(None, self.table.read(i))} (its guard, process {guard}, was killed)"
        who = f"[rank {rank} of {self.size}, {socket.gethostname()} pid {pid}]"
        write_descriptor(2, to_bytes(f"{who} {text}\n"))
