"""World: the processes (ranks) that train together under mpirun. The only file that imports mpi4py.

Every rank runs the same program on its own part of each batch; what makes it one training is a single sum:

    rank r:  g_r = sum of the gradients of its own micro-batches
    all:     g = sum over r of g_r, divided once        then clip, then Adam, on all ranks alike

so all ranks keep the same weights without ever sending them again. In which order that sum is taken, and how it
travels, is in reducer.py; here is what ranks need besides.

A rank that waits for another that never comes waits for ever: so everything that all ranks do together is a
`collective` here. It has a name, a number and a deadline (watchdog.py), and before any data move the ranks compare what
they are about to do: MPI itself would hang, add up wrong numbers or destroy memory where one of them does something
else. And whatever ends one rank ends the job.

Threads come first. NumPy's BLAS starts one thread per core when it is imported; four ranks on two cores would then
fight for them with eight threads, and lose half their speed. So a program calls `World.join()` before its first
`import numpy`, the ranks share out the cores (threads.py), and this file imports nothing that loads NumPy.
Without mpirun the process has all cores, and mpi4py is not imported.
"""

import atexit
import contextlib
import faulthandler
import os
import socket
import sys
import threading
import time
import traceback
import zlib
from array import array as plain_array

from tinygrad2 import cli
from tinygrad2.distributed.launch import leave, limit_start, ranks_started, tell_hard_exits
from tinygrad2.distributed.transport import Wire
from tinygrad2.distributed.watchdog import LAST, Board, Guard
from tinygrad2.errors import EarlyExit, UserError
from tinygrad2.system.signals import leave_now
from tinygrad2.system.threads import available_cores, plan_threads, usable_cores

_BUCKET = 4 << 20  # elements of one broadcast: 16 MB. Larger ones cost MPI fresh memory at every call
_ALIVE, _DONE = 1, 2  # what rank 0, working alone, says to those who wait


class World:
    """The ranks of this job: `rank` (0 .. size - 1), `size`, and what they do together. Alone it is rank 0 of 1.

    threads                  of BLAS and kernels in this process, None where nothing was planned
    host_rank, host_size     the same as rank and size among the ranks on this host
    hosts                    how many hosts there are
    wait_seconds, comm_seconds   seconds spent in collectives so far, waiting for others and moving data
    wire                     how arrays travel, within a collective
    """

    def __init__(self, comm=None, threads=None, node=None, guard=None, mpi=None):
        self.comm, self.threads, self.guard = comm, threads, guard
        self.rank, self.size = (comm.rank, comm.size) if comm else (0, 1)
        self.host_rank, self.host_size, self.hosts = (node.rank, node.size, 1) if node else (0, 1, 1)
        self.wait_seconds = self.comm_seconds = 0.0
        self._control = comm.Dup() if comm else None  # what the ranks tell each other about what they are going to do
        self._words = comm.Dup() if comm else None    # what rank 0 says while it works alone
        self._ending = threading.Lock()
        self.wire = Wire(comm, mpi)

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
        limit = limit_start()
        try:
            from mpi4py import MPI  # meets the other ranks
        except ImportError as error:
            leave(f"mpirun started {tasks} ranks, but mpi4py cannot be imported ({error}): pip install -e \".[mpi]\"")
        limit.cancel()
        comm = MPI.COMM_WORLD
        if comm.size != tasks:
            leave(
                f"{tasks} tasks were started, but MPI sees {comm.size}: mpirun and mpi4py belong to different MPIs "
                "(use the mpirun beside this Python, or srun --mpi=pmi2 for MPICH, --mpi=pmix for Open MPI)"
            )
        guard = Guard(comm.rank, comm.size, lambda text, code: world._abort(text, code, at_once=True))
        node = comm.Split_type(MPI.COMM_TYPE_SHARED)  # the ranks on this host
        world = cls(comm.Dup(), None, node, guard, MPI)
        sys.excepthook = lambda *error: world._die(error)
        threading.excepthook = lambda args: world._die(args[:3])
        faulthandler.enable()
        atexit.register(guard.over)
        tell_hard_exits(comm.rank, comm.size, guard.over)
        guard.start()
        with world.collective("sharing out the cores"):
            cores = available_cores()
            sharing = sum(bool(cores & other) for other in node.allgather(cores))
            world.hosts = comm.allreduce(int(node.rank == 0))
        if "numpy" in sys.modules and comm.rank == 0:
            print("warning: NumPy was imported before World.join(); its threads cannot be planned now", file=sys.stderr)
        world.threads = plan_threads(threads, default=usable_cores(cores, sharing))
        with world.collective("setting up the guards"):
            path = node.bcast(Board.make_file(node.size) if node.rank == 0 else None)
            board = Board(path, node.size, node.rank)
            guard.attach(board, *zip(*node.allgather((comm.rank, os.getpid()))))
            node.Barrier()
            if node.rank == 0:
                os.unlink(path)  # nothing is left behind, however we end
        return world

    def run(self, main):
        """Call main() and leave the program with its exit code (cli.run). Whatever ends one rank early ends the whole
        job: the others would wait for it indefinitely."""

        def main_and_meet():
            try:
                code = main()
            except EarlyExit:
                code = 0
            self.barrier(LAST)  # a rank that comes here while others are in another collective is reported
            return code

        cli.run(main_and_meet, abort=self._abort if self.size > 1 else None)

    def print(self, *args, **kwargs):
        """Print on rank 0 alone."""
        if self.rank == 0:
            print(*args, **kwargs, flush=True)

    # -- together ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def collective(self, name, what="", is_moving=True):
        """What all ranks do together goes into `with world.collective("sum of step 3", "12 float32"):`.

        Where they do not agree on the number, the name and `what`, the job ends with a line that says who is about to
        do what; where one does not come within the guard's time, with a line that says where it is.
        """
        if self.size == 1:
            yield
            return
        begin = time.perf_counter()
        self.guard.enter(name)
        try:
            self._compare(f"#{self.guard.number} '{name}'" + (f" ({what})" if what else ""))
            arrived = time.perf_counter()
            self.wait_seconds += arrived - begin
            yield
            if is_moving:
                self.comm_seconds += time.perf_counter() - arrived
        finally:
            self.guard.leave()

    @contextlib.contextmanager
    def alone(self, what):
        """Rank 0 does something that takes its time, while the others wait, without a deadline as long as it lives:

            with world.alone("writing a checkpoint") as mine:
                if mine: ...
        """
        with self.collective(f"rank 0 alone: {what}", is_moving=False):
            if self.rank == 0:
                if self.size > 1:
                    self.guard.alive_words = self._still_alive
                yield True
                if self.size > 1:
                    self.guard.alive_words = None
                    self._say(_DONE)
            else:
                yield False
                self._wait_for_rank_0()

    def on_rank_0(self, name, fn, *args):
        """Call fn(*args) on rank 0 while the others wait for it, asleep, without a deadline as long as it lives.

        Returns what fn returned on rank 0, None on the others.
        """
        with self.alone(name) as is_rank_0:
            return fn(*args) if is_rank_0 else None

    def _still_alive(self):
        self._say(_ALIVE)
        self.guard.heard()  # our own deadline begins anew, too

    def _say(self, word):
        for rank in range(1, self.size):
            self._words.Send(plain_array("q", [word]), rank)

    def _wait_for_rank_0(self):
        """Asleep most of the time: rank 0 may want the core."""
        word, pause = plain_array("q", [0]), 1e-4
        self.guard.in_alone = True
        while word[0] != _DONE:
            if self._words.Iprobe(source=0):
                self._words.Recv(word, source=0)
                self.guard.heard()
            else:
                time.sleep(pause)
                pause = min(1.2 * pause, 5e-3)
        self.guard.in_alone = False

    def broadcast(self, array, name="broadcast"):
        """Overwrite `array` (1-D, NumPy or CuPy) on every rank with that of rank 0."""
        if self.size > 1:
            from tinygrad2.backend import device_of, to_device, to_host  # late: it imports NumPy

            with self.collective(name, f"{array.size} {array.dtype}"):
                for start in range(0, array.size, _BUCKET):
                    bucket = array[start : start + _BUCKET]
                    host = to_host(bucket)  # of a NumPy array: itself, so it is overwritten in place
                    self.comm.Bcast(host, root=0)
                    if host is not bucket:
                        bucket[...] = to_device(host, device_of(array))

    def sum(self, array, name="sum"):
        """Overwrite `array` (1-D, NumPy) on every rank with the sum over all ranks: the same bits on each."""
        if self.size > 1:
            with self.collective(name, f"sum of {array.size} {array.dtype}"):
                self.wire.add_up(array)

    def broadcast_object(self, value, name="what rank 0 knows"):
        """What rank 0 has (plain Python values), on every rank."""
        if self.size == 1:
            return value
        with self.collective(name):
            return self.comm.bcast(value, root=0)

    def all_gather_object(self, value, name="what each rank knows"):
        """The values (plain Python ones) of all ranks, as a list, on every rank."""
        if self.size == 1:
            return [value]
        with self.collective(name):
            return self.comm.allgather(value)

    def all_gather(self, numbers, name):
        """The same for a NumPy array of equal size on all ranks: (size, *its shape)."""
        import numpy as np

        every = np.empty((self.size, *numbers.shape), numbers.dtype)
        every[self.rank] = numbers
        if self.size > 1:
            with self.collective(name, f"{numbers.size} {numbers.dtype} of each"):
                self.comm.Allgather(numbers, every)
        return every

    def barrier(self, name="barrier"):
        """Wait until every rank is here."""
        with self.collective(name):
            pass  # they have met when they compared what they do

    def set_timeout(self, seconds):
        """How long a collective may take; 0 means indefinitely."""
        if self.guard:
            self.guard.timeout = seconds

    def require_size(self, ranks):
        """Raises UserError where there are not exactly so many ranks; None: any number will do."""
        if ranks not in (None, self.size):
            raise UserError(f"--ranks {ranks}: there are {self.size}; start them by mpirun -n {ranks} python ..., or "
                            f"srun -n {ranks} --mpi=pmi2 (MPICH), --mpi=pmix (Open MPI)")  # fmt: skip

    def describe(self):
        """Lines that say which process is which: mpirun names a killed one by its number alone."""
        if self.size == 1:
            return []
        every = self.all_gather_object((socket.gethostname(), os.getpid(), self.threads), "who is who")
        hosts = {}
        for rank, (host, pid, threads) in enumerate(every):
            hosts.setdefault(host, []).append((rank, pid, threads))
        lines = []
        for host, ranks in list(hosts.items())[:8]:
            threads = sum(number for _, _, number in ranks)
            pids = ", ".join(f"{rank} is {pid}" for rank, pid, _ in ranks[:8]) + (" ..." if len(ranks) > 8 else "")
            lines.append(f"{host}: {len(ranks)} rank(s) with {threads} thread(s) in all; processes: {pids}")
        return lines + [f"and {len(hosts) - 8} more hosts"] * (len(hosts) > 8)

    def require_same(self, what, value):
        """Raises UserError on all ranks where `value` (plain Python) is not the same on all."""
        values = self.all_gather_object(value, f"comparing {what}")
        for rank, other in enumerate(values):
            if other != values[0]:
                raise UserError(f"the ranks do not have the same {what}: {_difference(values[0], other, rank)}")

    def _compare(self, doing):
        """Meet all ranks, and see that they are about to do the same."""
        from mpi4py import MPI

        code = zlib.crc32(doing.encode())
        most = plain_array("q", [0, 0])
        self._control.Allreduce(plain_array("q", [code, -code]), most, MPI.MAX)
        if most[0] == -most[1]:
            return
        every = self._control.allgather(doing)
        groups = {}
        for rank, other in enumerate(every):
            groups.setdefault(other, []).append(rank)
        lines = (f"rank{'s' * (len(ranks) > 1)} {_list(ranks)} {'are' if len(ranks) > 1 else 'is'} at {other}"
                 for other, ranks in groups.items())  # fmt: skip
        if self.rank == 0:
            self._abort(f"the ranks do not do the same: {'; '.join(lines)}. Ending the job before data move\n", 1)
        time.sleep(5)  # rank 0 says it
        self._abort("the ranks do not do the same\n", 1)

    # -- the end -------------------------------------------------------------------------------------------------------

    def _die(self, error):
        """End all ranks because of an exception in this one."""
        self._abort("".join(traceback.format_exception(*error)), cli.exit_code(error[1]))

    def _abort(self, text, code, at_once=False):
        if not self._ending.acquire(blocking=False):
            time.sleep(10)  # another thread of this process is at it
        self.guard.over()
        if self.rank and not at_once:
            time.sleep(1.0)  # if rank 0 has the same to say, it says it for all
        if threading.current_thread() is threading.main_thread():
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
        place = f"rank {self.rank} of {self.size}, {socket.gethostname()} pid {os.getpid()}"
        with contextlib.suppress(OSError):
            os.write(2, f"[{place}] {text}".encode())  # one write: lines of ranks do not mix
        time.sleep(0.2)  # mpirun passes the text on before it is told to kill
        timer = threading.Timer(3, leave_now, [code])  # Abort may come back, or hang on a dead network
        timer.daemon = True
        timer.start()
        sys.modules["mpi4py"].MPI.COMM_WORLD.Abort(code)
        leave_now(code)


def _list(ranks):
    return ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")


def _difference(first, other, rank):
    if isinstance(first, dict) and isinstance(other, dict):
        for key in first.keys() | other.keys():
            if first.get(key) != other.get(key):
                return f"{key} is {first.get(key)} on rank 0, {other.get(key)} on rank {rank}"
    return f"{first} on rank 0, {other} on rank {rank}"
