"""Guard: what keeps several ranks from waiting for each other for ever.

Every collective (something that all ranks do together) has a number, a name and a deadline. A thread in each rank
watches: where a collective is not over in time, it finds out who is missing, says so, and ends the whole job. What it
sees of the other ranks of its host is the board, a few bytes of shared memory per rank:

    number, name     the collective the rank is in, or was in last
    inside, since    is it in there now, and since when
    beat             when its guard was last awake: a stopped process has a stale one
    place            file, line and function of its main thread, written when another rank asks for it

What it sees of ranks on other hosts is nothing, but their own guards see them.

Where a rank of this host dies without a word (out of memory, say), the system wakes the guards of the others at once,
and one of them says which rank that was: mpirun knows a number of a process only, and some say nothing at all.

The same thread takes care of signals where the main thread cannot: Python runs signal handlers between two of its
instructions, which never comes for a rank that waits inside MPI. And it leaves when mpirun has died.

Imports nothing that loads NumPy: threads are planned later.
"""

import contextlib
import mmap
import os
import select
import signal
import socket
import struct
import sys
import sysconfig
import tempfile
import threading
import time

from tinygrad2.system.signals import STOP_SIGNALS, leave_now

TIMED_OUT = 124  # the exit code, as of the command `timeout`

_ROW = struct.Struct("qqddqq120s200s")  # number, inside, since, beat, pid, asked, name, place
_ASKED = 40  # the offset of `asked` in a row
LAST = "the end of the program"  # the collective after which ranks may end
_OVER = "over"
_OWN = ("world.py", "watchdog.py", "transport.py")  # where a rank that waits is anyway
_TICK = 0.2  # seconds between two looks
_PATIENCE = 10.0  # seconds that a rank may sit in one collective after a signal


class Row:
    """What the board says of one rank."""

    def __init__(self, number, inside, since, beat, pid, asked, name, place):
        self.number, self.inside, self.since, self.beat, self.pid, self.asked = number, inside, since, beat, pid, asked
        self.name, self.place = (text.split(b"\0")[0].decode("utf-8", "replace") for text in (name, place))


class Board:
    """Shared memory with one row per rank of this host; `mine` is the number of our own row."""

    def __init__(self, path=None, rows=1, mine=0):
        self.rows, self.mine = rows, mine
        if path is None:
            self._memory = mmap.mmap(-1, _ROW.size * rows)  # of this process alone
        else:
            with open(path, "r+b") as file:
                self._memory = mmap.mmap(file.fileno(), _ROW.size * rows)
        self._row = dict(number=0, inside=0, since=time.monotonic(), pid=os.getpid(), name=b"the start")

    @staticmethod
    def make_file(rows):
        """A file of the right size; whoever makes it removes it when all have opened it."""
        folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        handle, path = tempfile.mkstemp(prefix="tinygrad2-board-", dir=folder)
        os.truncate(handle, _ROW.size * rows)
        os.close(handle)
        return path

    def write(self, number, inside, since, name):
        """Our own row, but for what guards write."""
        offset = self.mine * _ROW.size
        struct.pack_into("qqd", self._memory, offset, number, inside, since)
        struct.pack_into("q", self._memory, offset + 32, os.getpid())
        struct.pack_into("120s", self._memory, offset + 48, name[:119].encode()[:119])

    def beat(self):
        """Our guard is awake. Gives True where another rank asks where we are."""
        offset = self.mine * _ROW.size
        struct.pack_into("d", self._memory, offset + 24, time.monotonic())
        return struct.unpack_from("q", self._memory, offset + _ASKED)[0] > 0

    def ask(self, row):
        """Ask another rank where it is."""
        struct.pack_into("q", self._memory, row * _ROW.size + _ASKED, 1)

    def answer(self, place):
        """Say where we are."""
        offset = self.mine * _ROW.size
        struct.pack_into("200s", self._memory, offset + 168, place[-199:].encode()[:199])
        struct.pack_into("q", self._memory, offset + _ASKED, 0)

    def read(self, row):
        """The Row of a rank."""
        return Row(*_ROW.unpack_from(self._memory, row * _ROW.size))


class Guard:
    """Watches over this rank's collectives.

    rank, size   of this process among all
    end          end(text, code) says the text, ends all ranks with this exit code, and does not come back
    timeout      seconds that a collective may take; 0 means for ever
    """

    def __init__(self, rank, size, end, timeout=300.0):
        self.rank, self.size, self.end, self.timeout = rank, size, end, timeout
        self.board, self.ranks = Board(), [rank]  # ranks: who has which row
        self.number, self.name, self.inside, self.since = 0, "the start", False, time.monotonic()
        self.longest = {}  # kind of collective -> seconds
        self.alive_words = None  # called now and then while this rank works alone and the others wait for it
        self.in_alone = False  # we wait for rank 0, which works alone
        self.parent = os.getppid()
        self._signals = []
        self._lives = {}  # a handle that the system makes readable when a process ends -> its row
        self._died = None  # when the first of them did
        self._next_word = 0.0
        self._pipe = None
        self.last_look = time.monotonic()

    def start(self):
        """Begin to watch. Call it in the main thread."""
        readable, writable = os.pipe()
        os.set_blocking(readable, False)
        os.set_blocking(writable, False)
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
        self._pipe = readable
        threading.Thread(target=self._watch, name="tinygrad2 guard", daemon=True).start()

    def attach(self, board, ranks, pids):
        """From now on the other ranks of this host are seen; ranks[i], process pids[i], has row i."""
        board.write(self.number, int(self.inside), self.since, self.name)
        self.board, self.ranks = board, ranks
        for i, pid in enumerate(pids):
            if i != board.mine and hasattr(os, "pidfd_open"):
                with contextlib.suppress(OSError):
                    self._lives[os.pidfd_open(pid)] = i

    def enter(self, name):
        """This rank goes into a collective."""
        self.number += 1
        self.name, self.since = name, time.monotonic()
        self.board.write(self.number, 1, self.since, name)
        self.inside = True

    def leave(self):
        """This rank has come out of it."""
        self.inside = False
        now = time.monotonic()
        kind = self.name.partition(" of step")[0]
        self.longest[kind] = max(self.longest.get(kind, 0.0), now - self.since)
        self.since = now
        self.board.write(self.number, 0, now, self.name)

    def over(self):
        """This rank ends, and says so itself: the others need not wonder."""
        self.board.write(self.number, 0, time.monotonic(), _OVER)

    def heard(self):
        """Rank 0, which works alone, has said that it is alive: the deadline begins anew."""
        self.since = time.monotonic()

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _watch(self):
        while True:
            handles = [self._pipe, *self._lives]
            ready, _, _ = select.select(handles, [], [], min(_TICK, self.timeout / 5 or _TICK))
            now = time.monotonic()
            if now - self.last_look > _PATIENCE / 2:  # we were suspended, and the others perhaps as well
                self.since += now - self.last_look
            self.last_look = now
            for handle in ready:
                if handle == self._pipe:
                    self._take_signals(now)
                else:
                    self._one_has_died(self._lives.pop(handle))
                    os.close(handle)
            if self._died and now - self._died > _PATIENCE / 2:  # mpirun should have ended us by now
                self.end("a rank has died; ending the job\n", 1)
            if self.board.beat():
                self.board.answer(where_is_main())
            if os.getppid() != self.parent:
                os.write(2, f"[rank {self.rank} of {self.size}] mpirun has gone; leaving\n".encode())
                leave_now(1)
            if self.alive_words and now >= self._next_word:
                self._next_word = now + min(5.0, self.timeout / 4 or 5.0)
                words = self.alive_words
                if words:
                    words()
            if self.inside:
                self._check(now)

    def _one_has_died(self, i):
        row, names = self.board.read(i), {self.board.read(j).name for j in range(self.board.rows)}
        if self._died or row.name == LAST or _OVER in names:  # the second one is mpirun's doing
            return
        self._died = time.monotonic()
        if self.board.mine == min(j for j in range(self.board.rows) if j != i):
            went = "in" if row.inside else "after"
            what = f"rank {self.ranks[i]} (pid {row.pid}) has died without a word, {went} #{row.number} '{row.name}'"
            why = "killed from outside (out of memory? see dmesg), crashed, or left by os._exit"
            os.write(2, f"[rank {self.rank} of {self.size}] {what}: {why}\n".encode())

    def _take_signals(self, now):
        try:
            numbers = os.read(self._pipe, 64)
        except BlockingIOError:
            return
        self._signals += [(number, now) for number in numbers if number in STOP_SIGNALS]

    def _check(self, now):
        waited = now - self.since
        if self._signals and not self.in_alone:
            number, first = self._signals[0]
            kind = self.name.partition(" of step")[0]
            grace = max(_PATIENCE, 3 * self.longest.get(kind, 0.0))
            again = now - first > 1 and any(now - when < 1 for _, when in self._signals[1:])
            if self.inside and (now - max(first, self.since) > grace or again):
                name = signal.Signals(number).name
                self.end(f"{name} has come, and this rank sits in {self._this()} since {waited:.1f} s; ending the job "
                         f"without another checkpoint (exit code {128 + number})\n", 128 + number)  # fmt: skip
        if self.timeout and waited > self.timeout:
            self._time_is_up(self.number)

    def _this(self):
        return f"collective #{self.number} '{self.name}'"

    def _time_is_up(self, number):
        late = self._missing()
        for row in late:
            self.board.ask(row)
        time.sleep(3 * _TICK)  # for the answers
        if not self.inside or self.number != number or time.monotonic() - self.since < self.timeout:
            return  # it has come after all
        late, now = self._missing(), time.monotonic()
        waiting = [i for i in range(self.board.rows) if i not in late]
        if self.board.mine != min(waiting, default=self.board.mine):
            time.sleep(2)  # one of us is enough
        host = socket.gethostname()
        if late:
            missing = "missing: " + "; ".join(self._describe(row, now) for row in late)
        elif self.board.rows == self.size:
            missing = "all ranks have come to it, and none has left"
        else:
            missing = f"no rank of {host} is missing: it is a rank of another host, or the network"
        self.end(f"{self._this()} was not over within {self.timeout:g} s; {missing}. Ending the job (exit code "
                 f"{TIMED_OUT}); --timeout sets the limit\n", TIMED_OUT)  # fmt: skip

    def _missing(self):
        """The rows of those for whom this collective waits, or who do not answer."""
        now, stale = time.monotonic(), max(1.0, min(5.0, self.timeout / 2))
        rows = [(i, self.board.read(i)) for i in range(self.board.rows)]
        return [i for i, row in rows if i != self.board.mine and (row.number < self.number or now - row.beat > stale)]

    def _describe(self, i, now):
        row = self.board.read(i)
        state = process_state(row.pid)
        if state in ("T", "t"):
            doing = "is stopped (as by SIGSTOP or a debugger)"
        elif state in ("", "Z", "X"):
            doing = "has gone"
        elif row.place:
            doing = f"is at {row.place}"
        else:
            doing = f"gives no answer (state {state})"
        went = "entered" if row.inside else "left"
        last = f"{went} #{row.number} '{row.name}' {now - row.since:.1f} s ago"
        return f"rank {self.ranks[i]} (pid {row.pid}) {last} and {doing}"


def process_state(pid):
    """The letter that Linux has for what a process does ("R", "S", "T": stopped, ...); "" where there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "" if os.path.isdir("/proc/self") else "unknown"


def where_is_main():
    """ "train_gpt2.py:131 in step": the innermost frame of the main thread that is neither a library's nor ours."""
    frame = innermost = sys._current_frames().get(threading.main_thread().ident)
    libraries = tuple(filter(None, {*sysconfig.get_paths().values()}))
    while frame is not None:
        path = os.path.abspath(frame.f_code.co_filename)
        if not path.startswith(libraries) and os.path.basename(path) not in _OWN:
            break
        frame = frame.f_back
    frame = frame or innermost
    if frame is None:
        return ""
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} in {frame.f_code.co_name}"
