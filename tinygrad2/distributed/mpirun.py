"""mpirun as a program that tinygrad2 starts: its path, and the environment it needs."""

import importlib.util
import os
import shutil
import sys

from tinygrad2.errors import UserError
from tinygrad2.system.launcher import without_launcher
from tinygrad2.system.threads import PLANNED


def find_mpirun():
    """The path of mpirun, preferably the one next to this Python. Raises UserError if there is none."""
    path = os.path.join(os.path.dirname(sys.executable), "mpirun")
    if not os.path.exists(path):
        path = shutil.which("mpirun") or shutil.which("mpiexec")
    if not path:
        raise UserError('there is no mpirun: pip install -e ".[mpi]"')
    return path


def have_mpi():
    """Whether mpi4py and an mpirun are installed."""
    try:
        find_mpirun()
    except UserError:
        return False
    return importlib.util.find_spec("mpi4py") is not None


OPEN_MPI = {  # Open MPI refuses to run as root, and with more ranks than cores, without these; MPICH ignores them
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


def environment():
    """The environment for such an mpirun: the user's, without the thread numbers that this process has set and without
    the variables of an mpirun by which it has been started itself."""
    users = {name: value for name, value in os.environ.items() if name not in PLANNED}
    return {**without_launcher(users), **OPEN_MPI}
