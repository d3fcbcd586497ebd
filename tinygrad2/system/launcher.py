"""What mpirun or srun have started, from their environment variables: before MPI can be asked, and without it."""

import os

_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")  # set by hydra (MPICH), Open MPI, srun
_RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK")
_OWN_VARIABLES = ("PMI", "OMPI_COMM_WORLD_", "OMPI_UNIVERSE_", "PRTE_", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")


def ranks_started():
    """How many ranks mpirun or srun have started; 0 without them."""
    return max(_number(name) or 0 for name in _SIZES)


def own_rank():
    """Which of them this process is. Under srun alone, SLURM_PROCID says it."""
    ranks = [number for number in map(_number, _RANKS) if number is not None]
    return ranks[0] if ranks else _number("SLURM_PROCID") or 0


def without_launcher(environment):
    """The environment of a program that is started as one process, or by an mpirun of its own: without the variables by
    which it would take itself for a rank of this job."""
    return {name: value for name, value in environment.items() if not name.startswith(_OWN_VARIABLES)}


def _number(name):
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() and len(text) < 10 else None
