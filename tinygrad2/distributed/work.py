"""How much this process has done: a number that changes while it works, and not while it only waits.

A process that hangs (on a disk, on a lock, in an endless loop) is alive, and its watchdog goes on saying so. What shows
that it works is what the system counts for its threads: bytes read and written, and pages of memory used for the first
time. Counted are the main thread and those of tinygrad2, not the watchdog's nor those of libraries, which go on if the
main thread hangs.
"""

import os
import threading


def work_done(folder="/proc/self/task"):
    """The number; None where the system does not count (only Linux does)."""
    total = 0
    for thread in threading.enumerate():
        is_main = thread is threading.main_thread()
        if not (is_main or thread.name.startswith("tinygrad2")) or thread is threading.current_thread():
            continue
        number = os.getpid() if is_main else thread.native_id  # after os.fork Python knows the parent's native_id
        path = os.path.join(folder, str(number))
        try:
            with open(os.path.join(path, "io"), encoding="ascii") as file:
                total += sum(int(line.split()[1]) for line in file.readlines()[:2])               # rchar, wchar
            with open(os.path.join(path, "stat"), encoding="ascii", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
            total += int(fields[7]) + int(fields[9])                                              # minor, major faults
        except (OSError, ValueError, IndexError):
            if not os.path.isdir(folder):
                return None
    return total
