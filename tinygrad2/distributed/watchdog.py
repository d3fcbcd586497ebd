"""Watchdog: keeps ranks from waiting for each other indefinitely.

Every collective (an operation of all ranks together) has a number, a name and a deadline. A thread in each rank
watches: if a collective does not finish in time, it finds out which rank is missing, reports it, and ends the job. It
sees the other ranks of its host in the status table (status.py). It does not see ranks on other hosts, but their own
watchdogs do.

While rank 0 works alone (World.on_rank_0) the others wait without a deadline as long as its heartbeats say that it does
something: each has a number that changes with its work. If it does not for ten times the deadline, the job ends too.

If a rank of this host dies without a message (out of memory, for example), its guard reports it (guard.py). Where there
are no guards the watchdogs do: the system wakes those of the other ranks at once.

The same thread handles signals when the main thread cannot: Python runs signal handlers between two bytecode
instructions, and a rank that waits inside MPI executes none. It also ends this rank when mpirun has died.

Imports nothing that loads NumPy: threads are planned later.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import sysconfig
import threading
import time

from tinygrad2.distributed.status import EXITING, StatusTable
from tinygrad2.distributed.work import work_done
from tinygrad2.errors import to_bytes
from tinygrad2.system.signals import REPEATED, STOP_SIGNALS, leave_now
from tinygrad2.system.streams import write_descriptor

TIMED_OUT = 124  # the exit code, as of the command `timeout`
OTHERS_FIRST_SECONDS = 2.0  # MPI ends a rank, or raises, if another one has died: that one's guard ends the job first
IDLE_FACTOR = 10  # times the timeout: how long rank 0, while it works alone, may do nothing

END_OF_PROGRAM = "the end of the program"  # the collective after which ranks may end
_FOLDER = os.path.dirname(os.path.abspath(__file__))
_WAITING_CODE = (_FOLDER + os.sep, os.path.join(os.path.dirname(_FOLDER), "cli.py"))  # frames of every waiting rank
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 10.0  # how long a rank may stay in one collective after a signal


class Watchdog:
    """Watches this rank's collectives.

    rank, size        of this process among all
    abort             abort(text, code) prints the text, ends all ranks with this exit code, and never returns
    timeout           seconds that a collective may take; 0: no limit
    guard             the Guard of this rank, which reports how it ends, or None
    heartbeat         None, or a function that is called every few seconds, while this rank works and the others wait,
                      with the number of its work (work.py)
    awaits_rank_0     True while this rank waits for rank 0, which works alone
    """

    def __init__(self, rank, size, abort, timeout=300.0, guard=None):
        self.rank, self.size, self.abort, self.timeout, self.guard = rank, size, abort, timeout, guard
        self.table, self.ranks = StatusTable(), [rank]  # ranks: the rank of each row
        self.number, self.name, self.inside, self.since = 0, "the start", False, time.monotonic()
        self.longest = {}  # kind of collective -> seconds
        self.heartbeat, self.awaits_rank_0 = None, False
        self._work, self._work_of, self._work_since = None, 0, 0.0  # of rank 0, and since when it has not changed
        self.last_poll = time.monotonic()
        self._next_heartbeat = 0.0
        self._parent = os.getppid()
        self._signals = []  # (number, time of arrival)
        self._processes = {}  # a handle that the system makes readable when a process ends -> its row
        self._died, self._death, self._patience = None, "", 0.0  # when the first of them ended, how, and when to act
        self._pipe = None

    def start(self):
        """Start the thread. Call it in the main thread."""
        readable, writable = os.pipe()
        os.set_blocking(readable, False)
        os.set_blocking(writable, False)
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
        self._pipe = readable
        threading.Thread(target=self._watch, name="tinygrad2 watchdog", daemon=True).start()

    def attach(self, table, rows):
        """From now on watch the other ranks of this host. rows[i]: rank, process, guard's process of row i."""
        table.write(self.number, int(self.inside), self.since, self.name)
        self.table, self.ranks = table, [rank for rank, _, _ in rows]
        for i, (_, pid, _) in enumerate(rows):
            if i != table.own and hasattr(os, "pidfd_open"):
                with contextlib.suppress(OSError):
                    self._processes[os.pidfd_open(pid)] = i

    def enter(self, name):
        """This rank enters a collective."""
        self.number += 1
        self.name, self.since = name, time.monotonic()
        self.table.write(self.number, 1, self.since, name)
        self.inside = True

    def leave(self):
        """This rank has left it."""
        self.inside = False
        now = time.monotonic()
        kind = self.name.partition(" of step")[0]
        self.longest[kind] = max(self.longest.get(kind, 0.0), now - self.since)
        self.since = now
        self.table.write(self.number, 0, now, self.name)

    def announce_exit(self, alone=False):
        """This rank exits, and reports it itself: others do not report it. alone: the others know nothing of it."""
        self.table.write(self.number, 0, time.monotonic(), EXITING)
        if self.guard:
            self.guard.ending(alone)

    def take_heartbeat(self, work):
        """Rank 0, which works alone, is alive: the time limit of this collective counts from now.

        work    what work_done() is there. If that does not change, another, longer time limit holds
        """
        self.since = time.monotonic()
        if work != self._work or work is None or self._work_of != self.number:
            self._work, self._work_of, self._work_since = work, self.number, self.since
        limit = IDLE_FACTOR * self.timeout + (self.rank > 0) * 2 * self.timeout  # rank 0 itself knows its location
        if self.timeout and self.since - self._work_since > limit:
            where = f"; it is at {location_of_main_thread()}" if self.rank == 0 else ""
            self.abort(f"rank 0 is alive, but has done nothing for {self.since - self._work_since:.0f} s in "
                       f"{self._current()}{where}. Ending the job (exit code {TIMED_OUT}); the limit is "
                       f"{IDLE_FACTOR} times --timeout\n", TIMED_OUT)  # fmt: skip

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _watch(self):
        while True:
            handles = [self._pipe, *self._processes]
            ready, _, _ = select.select(handles, [], [], min(_POLL_SECONDS, self.timeout / 5 or _POLL_SECONDS))
            now = time.monotonic()
            if now - self.last_poll > _GRACE_SECONDS / 2:  # this process was suspended, and perhaps all others
                self.since += now - self.last_poll
            self.last_poll = now
            for handle in ready:
                if handle == self._pipe:
                    self._take_signals(now)
                else:
                    self._report_death(self._processes.pop(handle))
                    os.close(handle)
            if self._died and now - self._died > self._patience:  # mpirun should have ended this rank by now
                self.abort(f"{self._death}; ending the job\n", 1)
            if self.table.beat():
                self.table.answer(location_of_main_thread())
            if os.getppid() != self._parent:
                write_descriptor(2, b"[rank %d of %d] mpirun has exited; ending this rank\n" % (self.rank, self.size))
                leave_now(1)
            heartbeat = self.heartbeat  # the main thread may reset it meanwhile
            if heartbeat and now >= self._next_heartbeat:
                self._next_heartbeat = now + min(5.0, self.timeout / 4 or 5.0)
                heartbeat(work_done())
            if self.inside:
                self._check(now)

    def _report_death(self, i):
        row, names = self.table.read(i), {self.table.read(j).name for j in range(self.table.rows)}
        if self._died or row.name == END_OF_PROGRAM or EXITING in names:  # mpirun ended the second one
            return
        when = "in" if row.inside else "after"
        self._died = time.monotonic()
        self._death = (f"rank {self.ranks[i]} (pid {row.pid}) died without a message, {when} #{row.number} "
                       f"'{row.name}': killed from outside (out of memory? see dmesg), or crashed")  # fmt: skip
        speaks = self.table.own == min(j for j in range(self.table.rows) if j != i)  # one report is enough
        self._patience = _GRACE_SECONDS * (1 if speaks else 1.5) / (1 if self.guard else 4)
        if speaks and not self.guard:
            write_descriptor(2, to_bytes(f"[rank {self.rank} of {self.size}] {self._death}\n"))

    def _take_signals(self, now):
        try:
            numbers = os.read(self._pipe, 64)
        except BlockingIOError:
            return
        for number in numbers:
            if number in STOP_SIGNALS and not (self._signals and number in REPEATED):
                self._signals.append((number, now))

    def _check(self, now):
        waited = now - self.since
        if self._signals and not self.awaits_rank_0:
            number, first = self._signals[0]
            kind = self.name.partition(" of step")[0]
            grace = max(_GRACE_SECONDS, 3 * self.longest.get(kind, 0.0))
            again = now - first > 1 and any(now - when < 1 for _, when in self._signals[1:])
            if self.inside and (now - max(first, self.since) > grace or again):
                name = signal.Signals(number).name
                text = f"{name} received, but this rank has been in {self._current()} for {waited:.1f} s"
                self.abort(f"{text}; ending the job without another checkpoint (exit code {128 + number})\n",
                           128 + number)  # fmt: skip
        if self.timeout and waited > self.timeout:
            self._report_timeout(self.number)

    def _current(self):
        return f"collective #{self.number} '{self.name}'"

    def _report_timeout(self, number):
        for row in self._missing():
            self.table.ask(row)
        time.sleep(3 * _POLL_SECONDS)  # for the answers
        if not self.inside or self.number != number or time.monotonic() - self.since < self.timeout:
            return  # it has finished after all
        missing, now = self._missing(), time.monotonic()
        waiting = [i for i in range(self.table.rows) if i not in missing]
        if self.table.own != min(waiting, default=self.table.own):
            time.sleep(2)  # one report is enough
        if missing:
            cause = "missing: " + "; ".join(self._describe(row, now) for row in missing)
        elif self.table.rows == self.size:
            cause = "all ranks have entered it, and none has left"
        else:
            cause = f"no rank of {socket.gethostname()} is missing: it is a rank of another host, or the network"
        self.abort(f"{self._current()} did not finish within {self.timeout:g} s; {cause}. Ending the job (exit code "
                   f"{TIMED_OUT}); --timeout sets the limit\n", TIMED_OUT)  # fmt: skip

    def _missing(self):
        """The rows of ranks that have not entered this collective, or whose watchdog does not run."""
        now, stale = time.monotonic(), max(1.0, min(5.0, self.timeout / 2))
        rows = [(i, self.table.read(i)) for i in range(self.table.rows)]
        return [i for i, row in rows if i != self.table.own and (row.number < self.number or now - row.beat > stale)]

    def _describe(self, i, now):
        row = self.table.read(i)
        state = process_state(row.pid)
        if state in ("T", "t"):
            doing = "is stopped (as by SIGSTOP or a debugger)"
        elif state in ("", "Z", "X"):
            doing = "has exited"
        elif row.location:
            doing = f"is at {row.location}"
        else:
            doing = f"does not answer (state {state})"
        verb = "entered" if row.inside else "left"
        last = f"{verb} #{row.number} '{row.name}' {now - row.since:.1f} s ago"
        return f"rank {self.ranks[i]} (pid {row.pid}) {last} and {doing}"


def process_state(pid):
    """Linux's letter for the state of a process ("R", "S", "T": stopped, ...); "" if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "" if os.path.isdir("/proc/self") else "unknown"


def location_of_main_thread():
    """The main thread's innermost frame outside libraries and this folder, such as "train_gpt2.py:131 in step"."""
    frame = innermost = sys._current_frames().get(threading.main_thread().ident)
    skipped = (*filter(None, {*sysconfig.get_paths().values()}), *_WAITING_CODE)
    while frame is not None and os.path.abspath(frame.f_code.co_filename).startswith(skipped):
        frame = frame.f_back
    frame = frame or innermost
    if frame is None:
        return ""
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} in {frame.f_code.co_name}"
