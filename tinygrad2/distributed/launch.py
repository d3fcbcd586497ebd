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
from tinygrad2.system.failures import explain
from tinygrad2.system.installation import adapt_hint
from tinygrad2.system.launcher import is_first_on_host, own_rank, ranks_on_host
from tinygrad2.system.memory import require_limits
from tinygrad2.system.process import started_at
from tinygrad2.system.signals import leave_now
from tinygrad2.system.streams import print_error, wait_until_read, write_descriptor
from tinygrad2.system.threads import require_threads

_END_SECONDS = 15.0  # that mpirun may take to end its ranks, on a busy machine
START_SECONDS = 300.0  # within which MPI must have started
FILES_OF_RANK = 24  # that it opens, one more for each rank of its host (measured: 22, of these MPICH 5.0 has 14)
FILES_FROM_MPIRUN = 16  # that are open when a rank starts (measured: 14 to 22)
_ADDRESS_SPACE, _DATA = 400 << 20, 140 << 20  # bytes: MPI 240 MB and 30 MB, measured; the rest for NumPy
THREADS_OF_RANK = 8  # and processes: its guard, its watchdog, those of MPI, a writer of checkpoints


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


def too_few_files(number):
    """A line if this process may not open so many more files; "" if it may."""
    opened = []
    try:
        while len(opened) < number:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        return f"{number} more open files are needed than the limit of this process leaves; raise it (ulimit -n 1024)"
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return ""


def refuse_small_limits():
    """Print one line and end the job with exit code 2 if the limits of this process (ulimit) leave too few open files
    or threads, or too little memory, for a rank: libraries would abort, or report something else. Call it before the
    guard starts.
    """
    ranks = ranks_on_host()
    problem = too_few_files(FILES_OF_RANK + (ranks if ranks < math.inf else 0))
    try:
        require_limits(_ADDRESS_SPACE, _DATA, "starting MPI and NumPy")
        require_threads(THREADS_OF_RANK)
    except (MemoryError, RuntimeError) as error:
        problem = problem or explain(error)
    if problem:
        if not is_first_on_host():
            time.sleep(1)  # for that rank to print it, and to end the job
        print_error(one_line(f"{program()}: {problem}"))
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
