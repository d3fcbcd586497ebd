"""Witness: one process per host that reports a rank whose guard was killed.

mpirun reacts to a killed guard (guard.py) by killing all other guards at once, and with each guard its rank ends. None
of them can report anything. The witness is a process that mpirun does not know: it is in a session of its own, waits
for the processes of its host in the order in which they end, and reports the first guard that ended without having
reported how its rank did, unless the ranks had said that they would end. Then it kills what is left (a stopped rank,
for example) and ends, at the latest a few seconds after the guards. mpirun waits until the last process that can write
to its stderr has ended, so the line arrives. It removes what is left of a job that
has not ended in order: shared memory of ranks that were killed while MPI started, a file of mpirun.

It also sees to mpirun's exit code. MPICH's mpirun kills all ranks after a second Ctrl-C. It waits for the end of its
process on each host (the proxy), and looks at its exit code only as long as the proxy's output is open: sometimes it is
closed a moment earlier, and mpirun returns 0. So the witness keeps it open until mpirun has ended, and sends it a third
Ctrl-C if that takes longer than a second.

On a busy machine the ends of processes may be reported in another order: others overtake one that is ending. So each
guard is connected to the witness by a socket, its lifeline, which is closed before mpirun can notice the guard's end:
Linux closes the descriptors of a killed process from the highest number down. Through it the guard also says that it
has reported the end of its rank: if rank and guard are killed at once, either may end first, and nobody has.

Guards connect to it at their start, so it also names a rank whose guard is killed while MPI starts; but only once all
guards of its host have done so: before that the first one that it sees may not be the one that was killed.

Needs Linux (pidfd, epoll); elsewhere there is no witness.
"""

import contextlib
import os
import select
import signal
import socket
import time

from tinygrad2.distributed.shared_memory import unlink_abandoned_files, unlink_files_of_job
from tinygrad2.distributed.status import EXITING, StatusTable, describe_death
from tinygrad2.errors import to_bytes
from tinygrad2.system.launcher import launcher_process, ranks_on_host
from tinygrad2.system.process import parents, rename_process, set_parent_death_signal, started_at, wake
from tinygrad2.system.signals import leave_now
from tinygrad2.system.streams import write_descriptor

_HIGH_NUMBER = 200  # higher than the descriptors of a guard
_RANK, _GUARD, _LIFELINE = "rank", "guard", "lifeline"
REPORTED, TABLE = b"reported", b"table"  # messages of a guard: before it ends, and Guard.share's
_LAST_SECONDS = 5.0     # within which mpirun ends the other ranks, once one has been killed
_ACCEPT_SECONDS = 2.0   # that a guard may take from its connecting to its first message
_START_SECONDS = 1.0    # within which the system ends ranks that were killed while MPI starts
_TOGETHER_SECONDS = 0.05  # guards that end within this time of each other may have been killed by mpirun


class Lifeline:
    """A guard's connection to its host's witness, which the system closes when the guard ends.

    rank, process    the guard's rank, and its process
    """

    def __init__(self, rank, process):
        self._hello, self._socket = b"%d %d %d" % (rank, process, os.getpid()), None

    def connect(self):
        """Returns whether it is connected: not before the guard of the host's first rank has started a witness."""
        if self._socket is None:
            with contextlib.suppress(OSError):
                self._socket = _connect(self._hello)
        return self._socket is not None

    def tell(self, message, *descriptors):
        """Send a message, and files with it; returns whether that was possible."""
        if self.connect():
            with contextlib.suppress(OSError):  # a witness that was killed, or stopped
                return socket.send_fds(self._socket, [message], descriptors) > 0
        return False


def start_witness(size, rank, lifeline):
    """Fork: the child watches, and never returns. Called by the guard of the first rank of a host.

    size        how many ranks there are in all
    rank        the process of that rank, which creates the status table
    lifeline    of its guard: connected first, so that the witness sees it end in any case
    """
    if not hasattr(os, "pidfd_open") or not hasattr(select, "epoll"):
        return
    guard = os.getpid()
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(_address())
        listener.listen(4096)
        lifeline.connect()
        if os.fork() == 0:
            try:
                listener = _detach(listener)
                rename_process("tinygrad2 witness")
                _Witness(listener, size, guard, rank).run()
            finally:
                leave_now(0)


def _connect(hello):
    """A socket that is connected to the witness, and has sent this. Raises OSError, for example if there is none."""
    import fcntl  # late: not on Windows

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as low:
        try:
            number = fcntl.fcntl(low.fileno(), fcntl.F_DUPFD_CLOEXEC, _HIGH_NUMBER)
        except OSError:  # a limit of fewer descriptors
            number = os.dup(low.fileno())
    connection = socket.socket(fileno=number)
    try:
        connection.connect(_address())
        connection.send(hello)
        connection.setblocking(False)
        return connection
    except OSError:
        connection.close()
        raise


def _address():
    """Where the witness of this host listens (no file), named by the process that all guards of a job know."""
    return b"\0tinygrad2 witness below %d" % launcher_process()


def _detach(connection):
    """Keep only stderr and this socket, which is returned, ignore what ends other processes, and leave the session."""
    set_parent_death_signal(signal.SIGCONT)  # if somebody has stopped it, it would stay
    signal.set_wakeup_fd(-1)
    for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGTERM", "SIGTSTP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(connection.fileno(), 3)
    os.closerange(4, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") > 0 else 1 << 16)
    connection.detach()
    return socket.socket(fileno=3)


class _Witness:
    """listener: the socket to which guards connect; guard, rank: the process that has started it, and its rank's."""

    def __init__(self, listener, size, guard, rank):
        self.first_rank, self.since = rank, started_at(guard)
        self.listener, self.size, self.above = listener, size, parents(guard)
        above = self.above  # mpirun's process on this host (the proxy), and mpirun
        self.jobs, self.files = set(), set()
        self.table, self.rows = None, []  # the status table, and the rank of each of its rows
        self.proxy = _open_process(above[0]) if above else None
        self.mpirun = _Mpirun(*above) if len(above) == 2 and _is_mpirun(above[1]) else None
        self.interrupted = False  # have the ranks been killed by mpirun after a second Ctrl-C?
        self.epoll = select.epoll()
        self.epoll.register(self.listener, select.EPOLLIN)
        self.handles = {}  # descriptor that the system makes readable when a process ends -> (rank, _RANK or ...)
        self.processes = {}  # rank -> its process, its guard's
        self.ranks, self.guards = set(), set()  # ranks that are alive, or whose guards are
        self.lifelines = {}  # rank -> its guard's socket
        self.reported, self.closed = set(), set()  # ranks whose guards have reported their end, or closed the socket

    def run(self):
        """Until all guards have ended."""
        self._accept_guards()  # the one that has started this process
        killed = self._first_killed()
        if killed is not None and not (self.size > len(self.processes) and self._all_end_together()):
            self._report(killed)
        last = time.monotonic() + _LAST_SECONDS
        while self.guards and (killed is None or time.monotonic() < last):
            self._next_events(1.0)
        for handle, (rank, kind) in self.handles.items():
            if kind == _RANK and rank in self.ranks:
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
        self._clean_up()

    def _accept_guards(self):
        """Returns the ranks of the guards that have connected."""
        new = []
        self.listener.setblocking(False)
        with contextlib.suppress(OSError):  # BlockingIOError: that was all; others: no more files may be opened
            while True:
                connection, _ = self.listener.accept()
                connection.settimeout(_ACCEPT_SECONDS)
                with contextlib.suppress(OSError, ValueError):  # ValueError: it has ended
                    rank, process, guard = map(int, connection.recv(100).split())
                    connection.setblocking(False)
                    self._add(rank, process, guard)
                    self.lifelines[rank] = connection
                    self._watch(connection, rank, _LIFELINE)  # its messages, and its end
                    new.append(rank)
        return new

    def _add(self, rank, process, guard):
        self.processes[rank] = process, guard
        for pid, kind, alive in ((process, _RANK, self.ranks), (guard, _GUARD, self.guards)):
            if handle := _open_process(pid):
                self._watch(handle, rank, kind)
                alive.add(rank)

    def _watch(self, handle, rank, kind):
        self.handles[handle if kind != _LIFELINE else handle.fileno()] = rank, kind
        self.epoll.register(handle, select.EPOLLIN)

    def _take_messages(self, rank):
        """Take all that a guard has told. Returns whether that was its last word."""
        try:
            while rank not in self.closed:
                message, descriptors, _, _ = socket.recv_fds(self.lifelines[rank], 1 << 16, 1, socket.MSG_DONTWAIT)
                word, _, value = message.partition(b" ")
                if word == TABLE and descriptors:  # without: no more files may be opened
                    self._take_table(value, *descriptors)
                elif word == REPORTED:
                    self.reported.add(rank)
                elif word:
                    (self.jobs if word == b"job" else self.files).add(value)
                else:
                    self.closed.add(rank)
        except BlockingIOError:
            pass
        except OSError:
            self.closed.add(rank)
        return rank in self.reported | self.closed

    def _take_table(self, text, descriptor):
        _, *rows = (tuple(map(int, row.split(b","))) for row in text.split())
        self.table, self.rows = StatusTable(descriptor, len(rows)), [rank for rank, _, _ in rows]
        os.close(descriptor)
        for row in rows:
            if row[0] not in self.processes:  # its guard could not connect
                self._add(*row)

    def _clean_up(self):
        os.close(2)  # the proxy waits for its end
        if self.proxy:
            select.select([self.proxy], [], [], _LAST_SECONDS)
        last = time.monotonic() + (_START_SECONDS if self.table is None else 0)
        while True:  # a rank that is being killed may still create one
            self._next_events(0)  # what guards have told at last
            for name in self.jobs:
                unlink_files_of_job(name)
            unlink_abandoned_files(self.since)
            StatusTable.remove_file(self.first_rank)
            if time.monotonic() >= last:
                break
            time.sleep(0.1)
        for path in self.files:
            with contextlib.suppress(OSError):
                os.unlink(path)
        if self.interrupted:
            self.mpirun.end()

    def _first_killed(self):
        """The rank whose guard's death ends the job; None if the job ends in another way, which is reported."""
        while self.guards:
            for rank, kind in self._next_events(None):
                if kind == _RANK and rank in self.lifelines:
                    continue  # its guard will have reported it, or be killed as well
                if kind == _RANK or rank not in self.ranks | self.lifelines.keys() or self._has_reported(rank):
                    return None
                if self.mpirun and self.mpirun.has_left_its_ranks():
                    self.interrupted = True
                    return None
                table = map(self.table.read, range(len(self.rows))) if self.table else ()
                in_order = any(row.name == EXITING or row.stopping for row in table)
                return None if in_order or len(self.processes) < (len(self.rows) or ranks_on_host()) else rank
        return None

    def _has_reported(self, rank):
        return rank in self.lifelines and self._take_messages(rank) and rank in self.reported

    def _next_events(self, seconds):
        """[(rank, kind)] of what has ended, in the order in which it did: processes, and guards' last words."""
        ended = []
        for handle, _ in self.epoll.poll(seconds, 1 if seconds is None else -1):
            if handle == self.listener.fileno():
                ended += [(rank, _LIFELINE) for rank in self._accept_guards() if self._take_messages(rank)]
            elif handle in self.handles:
                rank, kind = self.handles[handle]
                ended += [(rank, kind)] * (kind != _LIFELINE or self._take_messages(rank))
        for rank, kind in ended:
            if kind != _LIFELINE:
                (self.guards if kind == _GUARD else self.ranks).discard(rank)
            is_guarded = kind == _RANK and rank in self.guards
            wake([*self.above, *self.processes[rank][1:] * is_guarded])  # if they have been stopped
        for handle, what in [*self.handles.items()]:
            if what in ended:
                self.epoll.unregister(handle)
                del self.handles[handle]
                if what[1] != _LIFELINE:
                    os.close(handle)
        return ended

    def _all_end_together(self):
        """Have all guards of this host ended? Then mpirun may have killed them because of a rank on another host."""
        end = time.monotonic() + _TOGETHER_SECONDS
        while self.guards and (left := end - time.monotonic()) > 0:
            self._next_events(left)
        return not self.guards

    def _report(self, rank):
        process, guard = self.processes[rank]
        status = self.table and self.table.read(self.rows.index(rank))
        who = f"[rank {rank} of {self.size}, {socket.gethostname()} pid {process}]"
        text = f"{describe_death(None, status)} (its guard, process {guard}, was killed)"
        write_descriptor(2, to_bytes(f"{who} {text}\n"))


class _Mpirun:
    """MPICH's mpirun, of which this host's part is the process `proxy`."""

    def __init__(self, proxy, pid):
        self.process, self.pid, self.sockets = _open_process(pid), pid, _sockets(pid)
        with contextlib.suppress(OSError):
            self.output = os.open(f"/proc/{proxy}/fd/2", os.O_WRONLY | os.O_NONBLOCK)  # kept open: see above

    def has_left_its_ranks(self):
        """Has it closed its connection to the proxy, as it does after a second Ctrl-C before it kills the ranks?"""
        return bool(self.process) and not self.sockets <= _sockets(self.pid)

    def end(self):
        """Wait until it has ended, with an exit code other than 0."""
        if not select.select([self.process], [], [], 1.0)[0]:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self.process, signal.SIGINT)
            select.select([self.process], [], [], _LAST_SECONDS)


def _open_process(pid):
    """What the system makes readable when a process ends; None if it has ended."""
    with contextlib.suppress(OSError):
        return os.pidfd_open(pid)
    return None


def _is_mpirun(pid):
    """Not if mpirun has started this host's process through ssh, for example."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return os.path.basename(file.read(4096).split(b"\0")[0]).startswith((b"mpirun", b"mpiexec"))
    return False


def _sockets(pid):
    """The sockets of a process."""
    found = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    return {name for name in found if name.startswith("socket:")}
