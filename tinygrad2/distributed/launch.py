"""Launch: what mpirun or srun have started, before MPI itself can be asked; and leaving when that makes no sense.

Imports nothing that loads NumPy or MPI.
"""

import os
import sys
import threading
import time

from tinygrad2.cli import program
from tinygrad2.distributed.watchdog import TIMED_OUT
from tinygrad2.installation import adapt_hint
from tinygrad2.system.signals import leave_now

_TASKS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")  # set by hydra (MPICH), Open MPI, srun
START = 300.0  # seconds in which MPI must have started


def ranks_started():
    """How many ranks mpirun or srun have started, by what they leave in the environment; 0 without them."""
    return max(_number(os.environ.get(name)) for name in _TASKS)


def limit_start():
    """A timer that ends this process where MPI's start takes too long; cancel() it afterwards."""
    timer = threading.Timer(START, _never_started)
    timer.daemon = True
    timer.start()
    return timer


def _never_started():
    os.write(2, f"{program()}: MPI has not started within {START:g} s: a rank or a host is missing\n".encode())
    leave_now(TIMED_OUT)


def _number(text):
    return int(text) if text and text.isdigit() else 0


def leave(line):
    """One line on stderr, exit code 2. Before MPI is up, the launcher's own variables say who is rank 0."""
    rank = max(_number(os.environ.get(name)) for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK"))
    if rank == 0:
        print(f"{program()}: {adapt_hint(line)}", file=sys.stderr)
    sys.exit(2)


def tell_hard_exits(rank, size, over):
    """From now on os._exit says which rank has called it: mpirun would end the others without a word. `over()` is
    called before."""
    own = os.getpid()

    def leave_loudly(code):
        if os.getpid() == own:  # not in a forked child, for which it is the right way out
            over()
            frame = sys._getframe(1)
            place = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
            os.write(2, f"[rank {rank} of {size}] left by os._exit({code}) at {place}\n".encode())
            time.sleep(0.1)  # mpirun passes it on
        leave_now(code)

    os._exit = leave_loudly
