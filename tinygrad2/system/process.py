"""This process as others see it: its parent, and its command line in `ps`. Imports nothing that loads NumPy."""

import contextlib
import ctypes
import os
import signal
import time

from tinygrad2.system.signals import leave_now

_SET_PARENT_DEATH_SIGNAL = 1  # Linux's prctl


def set_parent_death_signal(number):
    """The system sends this process that signal when its parent dies. Does nothing where that is impossible."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, int(number))


def end_with(parent):
    """The system kills this process when its parent dies, also if it is stopped or inside a library."""
    set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != parent:
        leave_now(1)


def parents(pid, count=2):
    """The ids of a process's parent, its parent's parent, ...: at most so many, and not that of process 1."""
    found = []
    with contextlib.suppress(OSError, IndexError, ValueError):
        while len(found) < count:
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
                pid = int(file.read().rpartition(")")[2].split()[1])
            if pid <= 1:
                break
            found.append(pid)
    return found


def wake(pids):
    """Continue those of these processes that somebody has stopped."""
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGCONT)


def rename_process(title):
    """Show another command line in `ps`, cut to the length of the present one. Does nothing where that is impossible.

    The kernel shows what is in the memory that it filled at the start of the program.
    """
    with contextlib.suppress(OSError, IndexError, ValueError):
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            begin, end = map(int, file.read().rpartition(")")[2].split()[45:47])
        if 0 < begin < end:
            length = end - begin
            ctypes.memmove(begin, title.encode()[: length - 1].ljust(length, b"\0"), length)


def started_at(pid):
    """The time (as of time.time) at which a process was started, to a hundredth of a second; now if it is unknown."""
    now, ticks = time.time(), start_ticks(pid)
    with contextlib.suppress(OSError, AttributeError):
        if ticks is not None:
            return now - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")
    return now


def start_ticks(pid):
    """When a process was started, in clock ticks since the system was: with the pid that identifies it. None if it has
    ended, or the system does not tell (it is not Linux)."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return int(fields[19]) if fields[0] not in "ZX" else None
    return None


def kill_marked(mark, seconds):
    """Wait until no process of this machine has this mark any more; kill those that have not ended after so many
    seconds."""
    end = time.monotonic() + seconds
    while pids := marked(mark):
        if time.monotonic() > end:
            for pid in pids:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            end += seconds
        time.sleep(0.05)


def marked(mark):
    """The ids of all processes of this machine that have the variable `mark` ("NAME=value") in their environment."""
    pids = []
    with contextlib.suppress(OSError):
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
                if mark.encode() in file.read().split(b"\0"):
                    pids.append(int(name))
    return pids
