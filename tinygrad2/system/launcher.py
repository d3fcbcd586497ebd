"""What mpirun or srun have started, from their environment variables: before MPI can be asked, and without it."""

import functools
import math
import os
import socket
import stat
import struct

_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")  # set by hydra (MPICH), Open MPI, srun
_LAUNCHERS = {b"mpirun", b"mpiexec", b"mpiexec.hydra", b"orterun", b"prterun"}  # names of the process
_GENERATIONS = 6  # a rank, its guard, a proxy, mpirun
_MARGIN = 1 << 16  # bytes: what other ranks may have written that mpirun has not read yet
_DEV_FULL = os.makedev(1, 7) if hasattr(os, "makedev") else None
_RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK")
_HOST_SIZES = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE")
_HOST_RANKS = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")
_OWN_VARIABLES = ("PMI", "OMPI_COMM_WORLD_", "OMPI_UNIVERSE_", "PRTE_", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")


def ranks_started():
    """How many ranks mpirun or srun have started; 0 without them."""
    return max(_number(name) or 0 for name in _SIZES)


def own_rank():
    """Which of them this process is. Under srun alone, SLURM_PROCID says it."""
    ranks = [number for number in map(_number, _RANKS) if number is not None]
    return ranks[0] if ranks else _number("SLURM_PROCID") or 0


def launcher_has_room(number, size):
    """Can mpirun write so many bytes to its own standard output (1) or error (2), to which it copies that of the ranks?

    MPICH's mpirun kills the job when it cannot. So a rank that would fill the disk had better not print. True where it
    cannot be told: without mpirun, on another host than mpirun's, for pipes and terminals.
    """
    if not ranks_started() or (path := _path_of_launcher(number)) is None:
        return True
    try:
        status, disk = os.stat(path), os.statvfs(path)
    except (OSError, AttributeError):
        return True
    if not stat.S_ISREG(status.st_mode):
        return not stat.S_ISCHR(status.st_mode) or status.st_rdev != _DEV_FULL
    return not disk.f_blocks or disk.f_bavail * disk.f_frsize >= size + _MARGIN


@functools.cache
def _path_of_launcher(number):
    """/proc/PID/fd/NUMBER of the mpirun that has started this process; None if there is none on this host."""
    pid = os.getpid()
    for _ in range(_GENERATIONS):
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read()
        except OSError:
            return None
        name, _, rest = fields.partition(b"(")[2].rpartition(b")")
        if name in _LAUNCHERS:
            return f"/proc/{pid}/fd/{number}"
        pid = int(rest.split()[1])
    return None


def is_first_on_host():
    """Is this process the first rank of its host? False if that is unknown."""
    return any(_number(name) == 0 for name in _HOST_RANKS)


def ranks_on_host():
    """How many ranks there are on this host; infinitely many if that is unknown."""
    return next((number for number in map(_number, _HOST_SIZES) if number), math.inf)


def launcher_process():
    """The id of the process that all ranks of this host have in common: mpirun's on this host.

    That is the parent, except where a shell is between them, as in mpirun sh -c '...'; but MPICH's has also created
    the socket by which its ranks talk to it.
    """
    number = _number("PMI_FD")
    try:
        with socket.socket(fileno=os.dup(number)) as connection:
            return struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    except (OSError, TypeError, AttributeError):
        return os.getppid()


def without_launcher(environment):
    """The environment of a program that is started as one process, or by an mpirun of its own: without the variables by
    which it would take itself for a rank of this job."""
    return {name: value for name, value in environment.items() if not name.startswith(_OWN_VARIABLES)}


def _number(name):
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() and len(text) < 10 else None
