"""python -m tinygrad2.commands.doctor_checks NAME: a check of the doctor that may crash or hang, in its own process.

Prints one line with its result. What a check imports is what it checks, so imports are inside the functions.
"""

import importlib.util
import os
import sys
import time
from importlib.metadata import version

NOT_INSTALLED, UNUSABLE = 3, 4  # exit codes; with UNUSABLE the first line is "reason; remedy"


def kernels():
    """A compiled kernel equals its reference implementation. Prints Numba's version and the seconds it took."""
    import numpy as np

    import ops
    from tinygrad2.dispatch import kernels as use
    from tinygrad2.tensor import Tensor

    if not ops.have_cpu_kernels():
        print(*ops.why_no_cpu_kernels(), sep="; ")
        return UNUSABLE if importlib.util.find_spec("numba") else NOT_INSTALLED
    begin = time.perf_counter()
    x = Tensor(np.random.default_rng(0).standard_normal((64, 256), dtype=np.float32))
    weight, bias = Tensor(np.ones(256, np.float32)), Tensor(np.zeros(256, np.float32))
    fast = ops.layernorm(x, weight, bias).data
    with use("reference"):
        reference = ops.layernorm(x, weight, bias).data
    if np.abs(fast - reference).max() >= 1e-5:
        raise ArithmeticError("a kernel differs from its reference implementation")
    print(version("numba"), f"{time.perf_counter() - begin:.1f}")
    return 0


def ranks():
    """Under mpirun: the ranks add up their numbers. Each prints "sum", the number of ranks, the sum, MPI's version."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    line = f"sum {comm.size} {comm.allreduce(comm.rank + 1)} {MPI.Get_library_version().splitlines()[0]}"
    line = line.replace("\0", " ")  # Open MPI ends its version with one
    os.write(1, (" ".join(line.split()) + "\n").encode())  # one write: lines of ranks must not mix
    return 0


CHECKS = {"kernels": kernels, "ranks": ranks}

if __name__ == "__main__":
    from tinygrad2.errors import UserError

    try:
        sys.exit(CHECKS[sys.argv[1]]())
    except UserError as error:
        sys.exit(str(error))
