"""mpirun as a program that we start ourselves: where it is, and the environment it needs."""

import importlib.util
import os
import shutil
import sys

from tinygrad2.errors import UserError
from tinygrad2.system.threads import PLANNED


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
