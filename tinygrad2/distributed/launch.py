"""Launch: what mpirun or srun have started, before MPI itself can be asked; and exits that report themselves.

Imports nothing that loads NumPy or MPI.
"""

import os
import sys
import threading
import time

from tinygrad2.cli import program
from tinygrad2.distributed.watchdog import TIMED_OUT
from tinygrad2.system.installation import adapt_hint
from tinygrad2.system.signals import leave_now

_TASKS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")  # set by hydra (MPICH), Open MPI, srun
START = 300.0  # seconds in which MPI must have started


def ranks_started():
    """How many ranks mpirun or srun have started, by what they leave in the environment; 0 without them."""
    return max(_number(os.environ.get(name)) for name in _TASKS)


def exit_unless_started():
    """A timer that ends this process if MPI has not started within START seconds; cancel() it when it has."""
    timer = threading.Timer(START, _never_started)
    timer.daemon = True
    timer.start()
    return timer


def _never_started():
    os.write(2, f"{program()}: MPI has not started within {START:g} s: a rank or a host is missing\n".encode())
    leave_now(TIMED_OUT)


def _number(text):
    return int(text) if text and text.isdigit() else 0


def exit_with_line(line):
    """One line on stderr, exit code 2. Before MPI is up, the launcher's own variables name rank 0, which prints it."""
    rank = max(_number(os.environ.get(name)) for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK"))
    if rank == 0:
        print(f"{program()}: {adapt_hint(line)}", file=sys.stderr)
    sys.exit(2)


def report_hard_exits(rank, size, announce_exit):
    """From now on os._exit reports which rank has called it: mpirun would end the others without a message.
    announce_exit() is called before."""
    own = os.getpid()

    def report_and_exit(code):
        if os.getpid() == own:  # not in a forked child, for which it is the right way out
            announce_exit()
            frame = sys._getframe(1)
            location = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
            os.write(2, f"[rank {rank} of {size}] ended by os._exit({code}) at {location}\n".encode())
            time.sleep(0.1)  # mpirun passes it on
        leave_now(code)

    os._exit = report_and_exit
