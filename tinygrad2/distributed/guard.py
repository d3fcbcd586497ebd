"""Guard: a small process beside each rank that reports how the rank ended, and answers for its exit code.

Of a rank that dies mpirun knows at most a process number, some report nothing; it may end the job with exit code 0 if
the rank left by os._exit(0) or became another program (exec); and it kills the other ranks before they can report
anything. So each rank forks before MPI starts:

    mpirun  ---  guard of rank 0  ---  rank 0
            ---  guard of rank 1  ---  rank 1

The child goes on as the rank. The parent, the process that mpirun knows, waits for it:

    the rank ended by itself, and has reported why    the guard ends with the same exit code
    it was killed, or ended without a word            one line: rank, host, process, signal or exit code, collective;
                                                      the job ends with the signal's number, or a code other than 0
    MPI ended it by exit or MPI_Abort                 the same after two seconds: perhaps because another rank has died,
                                                      whose guard ends the job in that time
    it became another program                         the same, and that program is killed
    the guard itself is killed                        the system kills the rank; the witness (witness.py) reports it
    mpirun dies                                       the guard kills the rank

Signals that mpirun or the user send to the guard are passed on to the rank. The two are connected by a socket that ends
with the rank, through which it says that it will end (`Guard.ending`), and hands over the status table (watchdog.py).
What the rank's MPICH tells mpirun goes through the guard as well (pmi_relay.py).

The fork comes before threads, NumPy and MPI; a guard takes 10 MB of memory. Without os.fork there are no guards, and
the watchdogs report what they can. Imports nothing that loads NumPy.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback

from tinygrad2.distributed.launch import end_job
from tinygrad2.distributed.pmi_relay import Relay
from tinygrad2.distributed.status import StatusTable, describe_death
from tinygrad2.distributed.watchdog import OTHERS_FIRST_SECONDS
from tinygrad2.distributed.witness import REPORTED, TABLE, Lifeline, start_witness
from tinygrad2.errors import to_bytes
from tinygrad2.system.failures import explain
from tinygrad2.system.launcher import is_first_on_host
from tinygrad2.system.process import end_with, parents, rename_process, wake
from tinygrad2.system.signals import STOP_SIGNALS, leave_now
from tinygrad2.system.streams import write_descriptor

_ENDING, _LEAVING = b"ending", b"leaving"  # messages of the rank, and TABLE
_KEPT = ("SIGKILL", "SIGSTOP", "SIGCHLD", "SIGPIPE", "SIGTTIN", "SIGTTOU")  # signals that are not passed on
_KEPT += ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL")  # a crash of the guard itself
_FORWARDED = tuple(sorted(signal.valid_signals() - {getattr(signal, name, 0) for name in _KEPT}))
_POLL_SECONDS = 0.2
_EXEC_SECONDS = 1.0  # a rank whose socket is closed has either ended by then, or become another program


class Guard:
    """The rank's side of its connection to its guard.

    pid     the guard's process number: the one that mpirun knows
    """

    def __init__(self, connection, pid):
        self._connection, self.pid = connection, pid

    def ending(self, alone=False):
        """This rank is about to end, and has reported or will report why: its guard only passes on its exit code.

        alone    the other ranks know nothing of it: the guard ends the job
        """
        self._send(_LEAVING if alone else _ENDING)
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGCONT)  # if somebody has stopped it, the job would never end

    def share(self, path, own, rows):
        """Give the guard the status table, in which this rank has row `own`; it passes it on to the host's witness.

        path     of the table's file
        rows     (rank, process, process of its guard) of each rank of this host
        """
        with open(path, "r+b") as file:
            numbers = (own,), *rows
            self._send(b" ".join([TABLE, *(b",".join(b"%d" % n for n in row) for row in numbers)]), file.fileno())

    def _send(self, message, *descriptors):
        with contextlib.suppress(OSError):  # a guard that has been killed: so will this rank be
            socket.send_fds(self._connection, [message], descriptors)


def start_guard(rank, size):
    """Fork: returns the Guard in the child, which goes on as the rank; the parent guards it and never returns.

    Returns None where that is impossible: without os.fork, or if threads are running already.
    """
    if not hasattr(os, "fork") or not hasattr(socket, "send_fds") or threading.active_count() > 1:
        return None
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    relay = Relay()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    parent = os.getpid()
    try:
        child = os.fork()
    except OSError:  # no process can be created: the rank works without a guard
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return None
    if child == 0:
        ours.close()
        relay.connect()
        end_with(parent)
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)  # signals to the guard's process group arrive once, through the guard
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return Guard(theirs, parent)
    theirs.close()
    code = 1
    try:
        watch = _Watch(rank, size, child, ours, relay)
        rename_process(f"tinygrad2 guard of rank {rank} (process {child})")
        code = watch.run(before)
    except BaseException as error:  # no more memory or files: the rank ends with its guard
        text = explain(error) or "".join(traceback.format_exception(error))
        write_descriptor(2, to_bytes(f"[rank {rank} of {size}] its guard: {text}\n"))
        code = 2
        end_job(code)
    finally:
        leave_now(code)  # not through the exit of Python, which belongs to the rank


class _Watch:
    """The guard's life: waits for process `child`, rank `rank` of `size`, whose messages come through `connection`."""

    def __init__(self, rank, size, child, connection, relay):
        self.rank, self.size, self.child, self.connection, self.relay = rank, size, child, connection, relay
        self.command = _command_line(os.getpid())  # the rank's as well
        self.lifeline = Lifeline(rank, child)
        if is_first_on_host():
            start_witness(size, child, self.lifeline)
        self.table, self.row = None, 0
        self.ending, self.alone, self.received, self.closed = False, False, set(), None

    def run(self, mask):
        """Returns the exit code, or dies of the signal that killed the rank. mask: signals that were blocked."""
        wakeup = self._catch_signals()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        above, status = parents(os.getpid()), None  # mpirun's process on this host, and mpirun
        parent = os.getppid()
        while status is None:
            sources = [wakeup] if self.closed else [wakeup, self.connection]
            is_alone = not self.table and not self.lifeline.connect()  # that witness may not have been started yet
            pause = _POLL_SECONDS / 10 if is_alone else _POLL_SECONDS
            ready, _, _ = select.select([*sources, *self.relay.sources], [], [], pause)
            if wakeup in ready:
                self._forward(os.read(wakeup, 64))
            if self.connection in ready:
                self._take_message()
            self.relay.forward(ready, self._before_abort)
            while self.relay.job and self.lifeline.tell(self.relay.job[-1]):
                self.relay.job.pop()
            if self.ending:
                wake(above)  # if somebody has stopped them, MPI would never end
            pid, code = os.waitpid(self.child, os.WNOHANG)
            if pid:
                status = code
            elif self.closed and time.monotonic() - self.closed > _EXEC_SECONDS:
                wake(above)
                return self._end_other_program()
            elif os.getppid() != parent:
                self._report("mpirun has exited; ending this rank")
                os.kill(self.child, signal.SIGKILL)
                return 1
        while not self.closed:  # what it said last
            self._take_message()
        self.relay.forward(self.relay.sources, self._before_abort)
        wake(above)  # if somebody has stopped them, the job would never end
        return self._exit_code(os.waitstatus_to_exitcode(status))

    def _catch_signals(self):
        readable, writable = os.pipe()
        os.set_blocking(writable, False)
        signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
        for number in (*_FORWARDED, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        return readable

    def _forward(self, numbers):
        for number in numbers:
            if number in _FORWARDED:
                self.received.add(number)
                if self.table and number in STOP_SIGNALS:
                    self.table.stop(number)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.child, number)

    def _take_message(self):
        message, descriptors = b"", []
        with contextlib.suppress(OSError):  # BlockingIOError: a process that the rank has started holds the other end
            message, descriptors, _, _ = socket.recv_fds(self.connection, 1 << 16, 1, socket.MSG_DONTWAIT)
        word, *rest = message.split() or [b""]
        if not word:
            self.closed = time.monotonic()
        elif word in (_ENDING, _LEAVING):
            self.ending, self.alone = True, word == _LEAVING
        elif word == TABLE and descriptors:  # without: no more files may be opened
            self.row = int(rest[0])
            self.table = StatusTable(descriptors[0], self.row + 1, self.row)
            if self.row == 0:
                self.lifeline.tell(message, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)

    def _before_abort(self):
        """The rank's MPI asks mpirun to end the job, and says itself why."""
        if not self.ending:
            time.sleep(OTHERS_FIRST_SECONDS)
        self._report("")

    def _exit_code(self, code):
        asked = {-code, code - 128} & self.received & {*STOP_SIGNALS}  # it has obeyed a signal to all ranks
        explained = self.ending or asked
        if code > 0 and not explained:
            time.sleep(OTHERS_FIRST_SECONDS)
        self._report("" if explained else describe_death(code, self.table and self.table.read(self.row)))
        if self.alone or not explained:
            end_job(abs(code) or 1)
        if code < 0:
            self._die_of(-code)
        return code if self.ending else code or 1

    def _end_other_program(self):
        name = _command_line(self.child)
        what = f"has become another program ({name or 'unknown'})"
        self._report(f"{what if name != self.command else 'has closed its files'}; ending the job")
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child, signal.SIGKILL)
        end_job(1)
        return 1

    def _report(self, text):
        """Print what is to be said about the rank's end, "" for nothing: afterwards the witness need not say it."""
        who = f"[rank {self.rank} of {self.size}, {socket.gethostname()} pid {self.child}]"
        if text:
            write_descriptor(2, to_bytes(f"{who} {text}\n"))
        self.lifeline.tell(REPORTED)

    def _die_of(self, number):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the rank's memory is of interest, not this process's
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
        leave_now(128 + number)  # the signal was ignored


def _command_line(pid):
    """The beginning of a process's command line; "" if it is unknown."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read(200).replace(b"\0", b" ").decode("utf-8", "replace").strip()
    return ""
