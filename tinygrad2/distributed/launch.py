"""Launch: what mpirun or srun have started, before MPI itself can be asked; and leaving when that makes no sense.

Imports nothing that loads NumPy or MPI.
"""

import importlib.util
import os
import shutil
import sys
import threading
import time

from tinygrad2.distributed.watchdog import TIMED_OUT, leave_now
from tinygrad2.io.files import UserError
from tinygrad2.system.threads import PLANNED

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
        print(f"{program()}: {line}", file=sys.stderr)
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


def program():
    """The name of the script, for messages."""
    return os.path.basename(sys.argv[0])


def find_mpirun():
    """The path of mpirun, the one beside this Python first. Raises UserError where there is none."""
    beside = os.path.join(os.path.dirname(sys.executable), "mpirun")
    found = beside if os.path.exists(beside) else shutil.which("mpirun") or shutil.which("mpiexec")
    if not found:
        raise UserError('there is no mpirun: pip install -e ".[mpi]"')
    return found


def have_mpi():
    """Are mpi4py and an mpirun here?"""
    try:
        find_mpirun()
    except UserError:
        return False
    return importlib.util.find_spec("mpi4py") is not None


OPEN_MPI = {  # what Open MPI wants before it runs as root, and with more ranks than cores; MPICH does not look at it
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


def environment():
    """The environment for an mpirun of our own: as a user's shell has it, without our plan of threads."""
    return {**{name: value for name, value in os.environ.items() if name not in PLANNED}, **OPEN_MPI}
