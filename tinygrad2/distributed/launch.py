"""Launch: what happens before MPI itself has started, or when it does not; and a reporting os._exit.

Imports nothing that loads NumPy or MPI.
"""

import os
import sys
import threading
import time

from tinygrad2.cli import program
from tinygrad2.distributed.watchdog import TIMED_OUT
from tinygrad2.errors import one_line
from tinygrad2.system.installation import adapt_hint
from tinygrad2.system.launcher import own_rank
from tinygrad2.system.signals import leave_now
from tinygrad2.system.streams import print_error, write_descriptor

START_SECONDS = 300.0  # within which MPI must have started


def exit_unless_started():
    """Start a timer that ends this process after START_SECONDS, and return it; cancel() it once MPI has started."""
    timer = threading.Timer(START_SECONDS, _never_started)
    timer.daemon = True
    timer.start()
    return timer


def _never_started():
    line = f"{program()}: MPI has not started within {START_SECONDS:g} s: a rank or a host is missing\n"
    write_descriptor(2, line.encode())
    leave_now(TIMED_OUT)


def exit_with_line(line):
    """Print one line to stderr, on rank 0 as the launcher's variables name it (MPI has not started); exit code 2."""
    if own_rank() == 0:
        print_error(one_line(f"{program()}: {adapt_hint(line)}"))
    sys.exit(2)


def report_hard_exits(rank, size, announce_exit):
    """From now on os._exit reports which rank has called it: mpirun would end the others without a message.

    announce_exit() is called before that.
    """
    own_pid = os.getpid()

    def report_and_exit(code):
        if os.getpid() == own_pid:  # not in a forked child, which ends by os._exit normally
            announce_exit()
            frame = sys._getframe(1)
            location = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
            write_descriptor(2, f"[rank {rank} of {size}] ended by os._exit({code}) at {location}\n".encode())
            time.sleep(0.1)  # for mpirun to forward it
        leave_now(code)

    os._exit = report_and_exit
