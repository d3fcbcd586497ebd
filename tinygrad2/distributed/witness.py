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
from tinygrad2.system.process import parents, rename_process, set_parent_death_signal, started_at, wake
from tinygrad2.system.signals import leave_now
from tinygrad2.system.streams import write_descriptor

_HIGH_NUMBER = 200  # higher than the descriptors of a guard
_RANK, _GUARD, _LIFELINE = "rank", "guard", "lifeline"
REPORTED = b"reported"  # message of a guard, before it ends
_LAST_SECONDS = 5.0     # within which mpirun ends the other ranks, once one has been killed
_ACCEPT_SECONDS = 2.0   # that a guard may take from its connecting to its first message
_START_SECONDS = 1.0    # within which the system ends ranks that were killed while MPI starts
_TOGETHER_SECONDS = 0.05  # guards that end within this time of each other may have been killed by mpirun


def start_witness(size, rank):
    """Fork: the child watches, and never returns. Called by the guard of the first rank of a host.

    size    how many ranks there are in all
    rank    the process of that rank, which creates the status table

    Returns a socket for the message of Guard.share with the status table. None where there can be no witness.
    """
    if not hasattr(os, "pidfd_open") or not hasattr(select, "epoll"):
        return None
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    guard = os.getpid()
    with contextlib.suppress(OSError):
        if os.fork() == 0:
            try:
                connection = _detach(theirs)
                rename_process("tinygrad2 witness")
                _Witness(connection, size, guard, rank).run()
            finally:
                leave_now(0)
    theirs.close()
    return ours


def connect_to_witness(rows, own):
    """The socket that ends with this guard, whose rank has row `own` of the rows of Guard.share; None if there is no
    witness. The caller keeps it."""
    with contextlib.suppress(OSError):
        import fcntl  # late: not on Windows

        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.suppress(OSError):  # a limit of fewer descriptors
            connection = socket.socket(fileno=fcntl.fcntl(connection.fileno(), fcntl.F_DUPFD_CLOEXEC, _HIGH_NUMBER))
        connection.connect(_address(rows[0][2]))
        connection.send(b"%d" % own)
        return connection
    return None


def tell_witness(message):
    """Tell this host's witness what a guard has learned of the job (Relay.job): of whatever rank, the first one may be
    slow. Returns False if there is no witness yet."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(message, socket.MSG_DONTWAIT, _inbox(os.getppid()))
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    except OSError:  # its queue is full, for example: enough other guards have told it
        pass
    return True


def _inbox(proxy):
    """Where it takes that: named by mpirun's process on this host, which all guards know."""
    return b"\0tinygrad2 inbox of the witness below %d" % proxy


def _address(guard):
    """Where the witness that was started by this guard, that of the first rank of its host, listens: no file."""
    return b"\0tinygrad2 witness of guard %d" % guard


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
    """guard, rank: the process that has started it, and its rank's."""

    def __init__(self, connection, size, guard, rank):
        self.first_rank, self.since = rank, started_at(guard)
        self.connection, self.size, self.above = connection, size, parents(guard)
        above = self.above  # mpirun's process on this host (the proxy), and mpirun
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(_address(guard))
        self.listener.listen(4096)
        self.inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.inbox.setblocking(False)
        with contextlib.suppress(OSError):
            self.inbox.bind(_inbox(above[0] if above else 1))
        self.jobs, self.files, self.table, self.rows, self.hosts = set(), set(), None, [], 1
        self.proxy = _open_process(above[0]) if above else None
        self.mpirun = _Mpirun(*above) if len(above) == 2 and _is_mpirun(above[1]) else None
        self.interrupted = False  # have the ranks been killed by mpirun after a second Ctrl-C?
        self.epoll = select.epoll()
        self.handles = {}  # descriptor that the system makes readable when a process ends -> (row, RANK or ...)
        self.ranks, self.guards = set(), set()  # rows of those that are alive
        self.lifelines = {}  # row -> the guard's socket

    def run(self):
        """Until all guards have ended."""
        while self.table is None and self._take_message():
            pass
        if self.table is None:  # the guard has ended
            self.interrupted = bool(self.mpirun) and self.mpirun.has_left_its_ranks()
        else:
            self._watch()
        self._clean_up()

    def _take_message(self):
        """Returns whether there was one: not if the guard has ended."""
        message, descriptors = b"", []
        with contextlib.suppress(OSError):
            message, descriptors, _, _ = socket.recv_fds(self.connection, 1 << 16, 1)
        word, *rest = message.split() or [b""]
        if word:
            (_, self.hosts), *self.rows = (tuple(map(int, row.split(b","))) for row in rest)
            self.table = StatusTable(descriptors[0], len(self.rows))
            for descriptor in descriptors:
                os.close(descriptor)
        return bool(word)

    def _watch(self):
        for i, (_, rank, guard) in enumerate(self.rows):
            for pid, kind, alive in ((rank, _RANK, self.ranks), (guard, _GUARD, self.guards)):
                if handle := _open_process(pid):
                    self.handles[handle] = i, kind
                    alive.add(i)
                    self.epoll.register(handle, select.EPOLLIN)
        self.epoll.register(self.listener, select.EPOLLIN)
        killed = self._first_killed()
        if killed is not None and not (self.hosts > 1 and self._all_end_together()):
            self._report(killed)
        last = time.monotonic() + _LAST_SECONDS
        while self.guards and (killed is None or time.monotonic() < last):
            self._next_events(1.0)
        for handle, (i, kind) in self.handles.items():
            if kind == _RANK and i in self.ranks:
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)

    def _accept_guard(self):
        connection, _ = self.listener.accept()
        connection.settimeout(_ACCEPT_SECONDS)
        with contextlib.suppress(OSError):
            row = int(connection.recv(16) or len(self.rows))
            if row < len(self.rows):
                self.lifelines[row] = connection
                self.handles[connection.fileno()] = row, _LIFELINE
                self.epoll.register(connection, select.EPOLLIN)  # also its end

    def _clean_up(self):
        os.close(2)  # the proxy waits for its end
        if self.proxy:
            select.select([self.proxy], [], [], _LAST_SECONDS)
        last = time.monotonic() + (_START_SECONDS if self.table is None else 0)
        while True:  # a rank that is being killed may still create one
            self._learn()
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

    def _learn(self):
        """Take what guards have told about the job."""
        with contextlib.suppress(OSError):
            while message := self.inbox.recv(1 << 12):
                word, _, value = message.partition(b" ")
                (self.jobs if word == b"job" else self.files).add(value)

    def _first_killed(self):
        """The row of the guard whose death ends the job; None if the job ends in another way, which is reported."""
        while self.guards:
            for i, kind in self._next_events(None):
                if kind == _RANK and i in self.lifelines:
                    continue  # its guard will have reported it, or be killed as well
                if kind == _RANK or i not in self.ranks | self.lifelines.keys() or self._has_reported(i):
                    return None
                if self.mpirun and self.mpirun.has_left_its_ranks():
                    self.interrupted = True
                    return None
                table = map(self.table.read, range(len(self.rows)))
                return None if any(row.name == EXITING or row.stopping for row in table) else i
        return None

    def _has_reported(self, i):
        with contextlib.suppress(OSError, KeyError):
            return self.lifelines[i].recv(16) == REPORTED
        return False

    def _next_events(self, seconds):
        """[(row, kind)] of what has ended, in the order in which it did."""
        ready = [handle for handle, _ in self.epoll.poll(seconds, 1 if seconds is None else -1)]
        if self.listener.fileno() in ready:
            self._accept_guard()
        ended = [self.handles[handle] for handle in ready if handle in self.handles]
        for i, kind in ended:
            if kind != _LIFELINE:
                (self.guards if kind == _GUARD else self.ranks).discard(i)
            wake([*self.above, *(self.rows[i][2:] * (kind == _RANK and i in self.guards))])  # if they have been stopped
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

    def _report(self, i):
        rank, pid, guard = self.rows[i]
        text = f"{describe_death(None, self.table.read(i))} (its guard, process {guard}, was killed)"
        who = f"[rank {rank} of {self.size}, {socket.gethostname()} pid {pid}]"
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
