"""World: the processes (ranks) that train together under mpirun. The only file that imports mpi4py.

Every rank runs the same program on its own part of each batch; what makes it one training is a single sum:

    rank r:  g_r = gradient of the losses of its own sequences, each divided by the size of the *global* batch
    all:     g = sum over r of g_r        then clip, then Adam, on every rank alike

so all ranks keep the same weights without ever sending them again.

Threads come first. NumPy's BLAS starts one thread per core when it is imported; four ranks on two cores would then
fight for them with eight threads, and lose most of their speed. So a program calls `World.join()` before its first
`import numpy`, the ranks share out the cores (tinygrad2/threads.py), and this file imports nothing that loads NumPy.
Without mpirun the process has all cores, and mpi4py is not imported.
"""

import os
import sys
import threading
import time
import traceback

from tinygrad2.files import UserError
from tinygrad2.threads import available_cores, plan_threads

_TASKS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")  # set by hydra (MPICH), Open MPI, srun
_BUCKET = 4 << 20  # elements of one reduction: 16 MB. Larger ones cost MPI fresh memory at every call


class EarlyExit(Exception):
    """All ranks are done before they have begun (after --help, say): leave with code 0."""


class World:
    """The ranks of this job: `rank` (0 .. size - 1), `size`, and what they do together. Alone it is rank 0 of 1."""

    def __init__(self, comm=None, threads=None):
        self.comm = comm
        self.rank = comm.rank if comm else 0
        self.size = comm.size if comm else 1
        self.threads = threads  # of BLAS and kernels in this process, None where nothing was planned

    @classmethod
    def join(cls, threads=None):
        """Find the other ranks, if there are any, and share out the cores. Call it before NumPy is imported.

        `threads` is the user's own number for each rank, None for an even share of the cores.

        Leaves with exit code 2 and one line where mpi4py is missing or belongs to another MPI than mpirun.
        """
        tasks = ranks_started()
        if tasks <= 1:
            return cls(threads=plan_threads(threads))
        os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")  # idle ranks of Open MPI give way to busy ones
        try:
            from mpi4py import MPI
        except ImportError as error:
            _leave(f"mpirun started {tasks} ranks, but mpi4py cannot be imported ({error}): pip install -e \".[mpi]\"")
        comm = MPI.COMM_WORLD
        if comm.size != tasks:
            _leave(
                f"{tasks} tasks were started, but MPI sees {comm.size}: mpirun and mpi4py belong to different MPIs "
                "(use the mpirun beside this Python, or srun --mpi=pmi2 / --mpi=pmix)"
            )
        world = cls(comm, plan_threads(threads, default=_share_of_cores(comm, MPI.COMM_TYPE_SHARED)))
        sys.excepthook = lambda *error: world._die(error)
        threading.excepthook = lambda args: world._die(args[:3])
        return world

    def run(self, main):
        """Call main() and leave the program with its exit code; whatever ends one rank early ends the whole job.

        Without that the others would wait for it for ever. A UserError is one line and exit code 2, on one rank or
        many; anything else that is raised, and sys.exit, shows its traceback.
        """
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character is no reason to stop
        try:
            code = main()
        except EarlyExit:
            code = 0
        except BrokenPipeError:  # whoever read our output has gone, as in `... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 1
        except UserError as error:
            if self.size > 1:
                self._abort(f"{_program()}: {error}\n", 2)
            _leave(str(error))
        except MemoryError as error:
            line = f"out of memory ({error or 'no more is to be had'}); python -m tinygrad2 plan, with the same flags, "
            line += "says what takes how much, and which flag saves how much"
            if self.size > 1:
                self._abort(f"{_program()}: {line}\n", 2)
            _leave(line)
        except KeyboardInterrupt:
            if self.size > 1:
                self._abort("interrupted\n", 130)
            print("\ninterrupted", file=sys.stderr)
            sys.exit(130)
        except BaseException as error:
            if self.size == 1:
                raise
            self._die((type(error), error, error.__traceback__))
        sys.exit(code)

    def print(self, *args, **kwargs):
        """Print on rank 0 alone."""
        if self.rank == 0:
            print(*args, **kwargs, flush=True)

    def broadcast(self, array):
        """Overwrite `array` (1-D, NumPy or CuPy) on every rank with that of rank 0."""
        if self.size > 1:
            self._in_buckets(array, lambda host: self.comm.Bcast(host, root=0))

    def sum(self, array):
        """Overwrite `array` (1-D, NumPy or CuPy) on every rank with the sum over all ranks: the same bits on each."""
        if self.size > 1:
            from mpi4py import MPI

            self._in_buckets(array, lambda host: self.comm.Allreduce(MPI.IN_PLACE, host, MPI.SUM))

    def sum_number(self, number):
        """The sum of one Python number over all ranks."""
        return number if self.size == 1 else self.comm.allreduce(number)

    def any(self, flag):
        """True on every rank where `flag` is true on at least one."""
        return bool(flag) if self.size == 1 else self.comm.allreduce(int(bool(flag))) > 0

    def share(self, value):
        """What rank 0 has (plain Python values), on every rank."""
        return value if self.size == 1 else self.comm.bcast(value, root=0)

    def collect(self, value):
        """The values (plain Python ones) of all ranks, as a list, on every rank."""
        return [value] if self.size == 1 else self.comm.allgather(value)

    def barrier(self):
        """Wait until every rank is here."""
        if self.size > 1:
            self.comm.Barrier()

    def _in_buckets(self, array, collective):
        from tinygrad2.backend import device_of, to_device, to_host  # late: it imports NumPy

        for start in range(0, array.size, _BUCKET):
            bucket = array[start : start + _BUCKET]
            host = to_host(bucket)  # of a NumPy array: itself, so the collective works in place
            collective(host)
            if host is not bucket:
                bucket[...] = to_device(host, device_of(array))

    def _die(self, error):
        """End all ranks because of an exception in this one."""
        self._abort("".join(traceback.format_exception(*error)), _exit_code(error[1]))

    def _abort(self, text, code):
        if self.rank:
            time.sleep(1.0)  # if rank 0 has the same to say, it says it for all
        sys.stdout.flush()
        os.write(2, f"[rank {self.rank} of {self.size}] {text}".encode())  # one write: lines of ranks do not mix
        time.sleep(0.2)  # mpirun passes the text on before it is told to kill
        self.comm.Abort(code)
        os._exit(code)  # Abort may come back before this rank is killed


def ranks_started():
    """How many ranks mpirun or srun have started, by what they leave in the environment; 0 without them."""
    return max(_number(os.environ.get(name)) for name in _TASKS)


def _share_of_cores(comm, shared):
    """Threads for this rank: its cores over the ranks that share them."""
    cores = available_cores()
    node = comm.Split_type(shared)  # the ranks on this machine
    sharing = sum(bool(cores & other) for other in node.allgather(cores))
    if "numpy" in sys.modules and comm.rank == 0:
        print("warning: NumPy was imported before World.join(); its threads cannot be planned now", file=sys.stderr)
    return max(1, len(cores) // sharing)


def _number(text):
    return int(text) if text and text.isdigit() else 0


def _exit_code(error):
    if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code:
        return error.code
    return 1  # also for sys.exit(0) on one rank: the job did not end as it should


def _leave(line):
    """One line on stderr, exit code 2. Before MPI is up, the launcher's own variables say who is rank 0."""
    rank = max(_number(os.environ.get(name)) for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK"))
    if rank == 0:
        print(f"{_program()}: {line}", file=sys.stderr)
    sys.exit(2)


def _program():
    return os.path.basename(sys.argv[0])
