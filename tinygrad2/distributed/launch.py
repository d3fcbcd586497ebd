"""Launch: what happens before MPI itself has started, or when it does not; and a reporting os._exit.

Imports nothing that loads NumPy or MPI.
"""

import math
import os
import sys
import threading
import time

from tinygrad2.cli import program
from tinygrad2.distributed.shared_memory import shortage
from tinygrad2.distributed.watchdog import TIMED_OUT
from tinygrad2.errors import one_line, to_bytes
from tinygrad2.system.installation import adapt_hint
from tinygrad2.system.launcher import is_first_on_host, own_rank, ranks_on_host
from tinygrad2.system.process import started_at
from tinygrad2.system.signals import leave_now
from tinygrad2.system.streams import print_error, wait_until_read, write_descriptor

_END_SECONDS = 15.0  # that mpirun may take to end its ranks, on a busy machine
START_SECONDS = 300.0  # within which MPI must have started
_FILES = 24  # that a rank opens, one more for each rank of its host: 14 of them MPICH 5.0 (22 in all, measured)


def exit_unless_started(announce_exit):
    """Start a timer that ends this process after START_SECONDS, and return it; cancel() it once MPI has started.

    announce_exit() is called before the process ends.
    """
    timer = threading.Timer(START_SECONDS, _never_started, [announce_exit])
    timer.daemon = True
    timer.start()
    return timer


def _never_started(announce_exit):
    announce_exit()
    line = f"{program()}: MPI has not started within {START_SECONDS:g} s: a rank or a host is missing\n"
    write_descriptor(2, to_bytes(line))
    leave_now(TIMED_OUT)


def end_job(code):
    """Let MPICH's mpirun end all ranks, this process included, with this exit code; returns if that is impossible.

    Where one process just ends, it kills the others, and the job's exit code is that of all of them or-ed together.
    For processes that do not use MPI themselves. First it lets mpirun read what this process has written to stderr:
    afterwards it does not. (The request is that of MPI_Abort in PMI, version 1.)
    """
    if "HYDI_CONTROL_FD" in os.environ and os.environ.get("PMI_FD", "").isdigit():
        wait_until_read(2)
        write_descriptor(int(os.environ["PMI_FD"]), b"cmd=abort exitcode=%d\n" % code)
        time.sleep(_END_SECONDS)


def exit_with_line(line):
    """Print one line to stderr, on rank 0 as the launcher's variables name it (MPI has not started); exit code 2."""
    if own_rank() == 0:
        print_error(one_line(f"{program()}: {adapt_hint(line)}"))
    sys.exit(2)


def leave_with_line(line, code, announce_exit):
    """The same while MPI starts: Python's own exit would wait in MPI for the other ranks."""
    if own_rank() == 0:
        print_error(one_line(f"{program()}: {line}"))
    else:
        time.sleep(0.5)  # for that rank to print it
    announce_exit(alone=True)
    leave_now(code)


def refuse_few_files():
    """Print one line and end the job with exit code 2 if this process may not open as many files as a rank needs.

    Libraries that cannot open one abort, or report something else. To be called before the guard is started.
    """
    ranks = ranks_on_host()
    need, opened = _FILES + (ranks if ranks < math.inf else 0), []
    try:
        while len(opened) < need:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        line = f"{program()}: a rank needs {need} more open files than the limit of this process leaves"
    finally:
        for number in opened:
            os.close(number)
    if len(opened) < need:
        if not is_first_on_host():
            time.sleep(1)  # for that rank to print it, and to end the job
        print_error(one_line(f"{line}; raise it (ulimit -n 1024)"))
        end_job(2)
        leave_now(2)


def refuse_small_shared_memory(announce_exit):
    """Print one line and end the job with exit code 2 if MPICH will not find enough shared memory on this host."""
    ranks = os.environ.get("MPI_LOCALNRANKS", "")
    if ranks.isdecimal() and (problem := shortage(int(ranks), started_at(os.getppid()))):
        if os.environ.get("MPI_LOCALRANKID") == "0":
            print_error(one_line(f"{program()}: {problem}"))
        else:
            time.sleep(1)  # for that rank to print it
        announce_exit(alone=True)
        sys.exit(2)


def report_hard_exits(rank, size, announce_exit):
    """From now on os._exit reports which rank has called it: mpirun would end the others without a message.

    announce_exit() is called before that. Exit code 0 becomes 1: the job has not been completed.
    """

    def report_and_exit(status):
        code = status & 255 or 1  # a TypeError, as of os._exit, if it is no number
        announce_exit(alone=True)
        frame = sys._getframe(1)
        location = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
        write_descriptor(2, to_bytes(f"[rank {rank} of {size}] ended by os._exit({status}) at {location}\n"))
        wait_until_read(2)
        time.sleep(0.1)  # for mpirun to forward it
        leave_now(code)

    os._exit = report_and_exit
