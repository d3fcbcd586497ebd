"""Launch: what mpirun or srun have started, before MPI itself can be asked; and leaving when that makes no sense.

Imports nothing that loads NumPy or MPI.
"""

import os
import sys

from tinygrad2.guard import TIMED_OUT

_TASKS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")  # set by hydra (MPICH), Open MPI, srun
START = 300.0  # seconds in which MPI must have started


def ranks_started():
    """How many ranks mpirun or srun have started, by what they leave in the environment; 0 without them."""
    return max(_number(os.environ.get(name)) for name in _TASKS)


def never_started():
    """End this process: other ranks did not come to MPI's start."""
    os.write(2, f"{program()}: MPI has not started within {START:g} s: a rank or a host is missing\n".encode())
    os._exit(TIMED_OUT)


def _number(text):
    return int(text) if text and text.isdigit() else 0


def leave(line):
    """One line on stderr, exit code 2. Before MPI is up, the launcher's own variables say who is rank 0."""
    rank = max(_number(os.environ.get(name)) for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK"))
    if rank == 0:
        print(f"{program()}: {line}", file=sys.stderr)
    sys.exit(2)


def program():
    """The name of the script, for messages."""
    return os.path.basename(sys.argv[0])
