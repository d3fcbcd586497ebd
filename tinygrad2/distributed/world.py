"""World: the processes (ranks) that train together under mpirun. The only file that imports mpi4py.

Every rank runs the same program on its own part of each batch; a single sum makes it one training:

    rank r:  g_r = sum of the gradients of its own micro-batches
    all:     g = sum over r of g_r, divided once        then clipping and Adam, the same on all ranks

so all ranks keep the same weights without ever sending them again. The order of that sum, and how it is communicated,
are in reducer.py and allreduce.py; everything else that ranks need is here.

A rank that waits for one that never arrives would wait indefinitely, so every operation of all ranks together is a
`collective` here. It has a name, a number and a deadline (watchdog.py), and before data is transferred the ranks
compare what they are about to do: if one of them did something else, MPI itself would hang, add up unrelated values or
overwrite memory. And whatever ends one rank ends the job.

Threads are planned first. NumPy's BLAS starts one thread per core when it is imported; four ranks on two cores would
then compete for the cores with eight threads, and lose half their speed. So a program calls `World.join()` before its
first `import numpy`, the ranks divide the cores (threads.py), and this file imports nothing that loads NumPy. Without
mpirun the process has all cores, and mpi4py is not imported.
"""

import atexit
import contextlib
import faulthandler
import io
import os
import signal
import socket
import sys
import threading
import time
import traceback
import zlib
from array import array as plain_array

from tinygrad2 import cli
from tinygrad2.distributed.guard import start_guard
from tinygrad2.distributed.launch import (
    exit_unless_started,
    exit_with_line,
    leave_with_line,
    refuse_small_limits,
    refuse_small_shared_memory,
    report_hard_exits,
)
from tinygrad2.distributed.shared_memory import unlink_mpi_memory
from tinygrad2.distributed.status import StatusTable
from tinygrad2.distributed.transport import Transport
from tinygrad2.distributed.watchdog import END_OF_PROGRAM, OTHERS_FIRST_SECONDS, Watchdog
from tinygrad2.errors import EarlyExit, UserError, one_line, to_bytes
from tinygrad2.system.failures import explain
from tinygrad2.system.launcher import own_rank, ranks_started
from tinygrad2.system.signals import leave_now
from tinygrad2.system.streams import print_error, wait_until_read, write_descriptor
from tinygrad2.system.threads import available_cores, plan_threads, usable_cores

_BUCKET = 4 << 20  # elements of one broadcast: 16 MB. Larger ones cost MPI fresh memory at every call
_ALIVE, _DONE = 1, 2  # messages of rank 0 to the ranks that wait for it (on_rank_0)


class World:
    """The ranks of this job: `rank` (0 .. size - 1), `size`, and their collectives. Without mpirun: rank 0 of 1.

    threads                  of BLAS and kernels in this process, None if nothing was planned
    host_rank, host_size     rank and size among the ranks on this host
    hosts                    how many hosts there are
    wait_seconds             seconds spent so far in collectives, waiting for other ranks
    comm_seconds             seconds spent so far in collectives, moving data
    transport                the Transport of arrays, to be used within a collective
    """

    def __init__(self, comm=None, threads=None, host_comm=None, watchdog=None, mpi=None):
        self.comm, self.threads, self.watchdog, self._mpi = comm, threads, watchdog, mpi
        self.rank, self.size = (comm.rank, comm.size) if comm else (0, 1)
        self.host_rank, self.host_size = (host_comm.rank, host_comm.size) if host_comm else (0, 1)
        self.hosts = 1
        self.wait_seconds = self.comm_seconds = 0.0
        self._agreement = comm.Dup() if comm else None  # for comparing what the ranks are about to do
        self._heartbeats = comm.Dup() if comm else None  # for messages of rank 0 while the others wait for it
        self._ending = threading.Lock()
        self.transport = Transport(comm, mpi)

    @classmethod
    def join(cls, threads=None):
        """Find the other ranks, if there are any, and divide the cores among them. Call it before NumPy is imported.

        `threads`: the number for each rank that the user asked for, None for an even share of the cores.

        Exits with code 2 and one line if mpi4py is missing or belongs to another MPI than mpirun.
        """
        tasks = ranks_started()
        if not tasks:
            return cls(threads=plan_threads(threads))
        refuse_small_limits()
        guard = start_guard(own_rank(), tasks)
        announce_exit = guard.ending if guard else lambda alone=False: None
        atexit.register(announce_exit)
        if tasks == 1:  # without MPI; but `launch` takes exit code 0 of one rank, too, for the end of the training
            report_hard_exits(0, 1, announce_exit)
            os.register_at_fork(after_in_child=lambda: _is_no_rank(announce_exit))
            return cls(threads=plan_threads(threads))
        try:
            refuse_small_shared_memory(announce_exit)
            MPI = _start_mpi(tasks, announce_exit)
        except KeyboardInterrupt:
            leave_with_line("interrupted", 130, announce_exit)
        comm = MPI.COMM_WORLD
        watchdog = Watchdog(
            comm.rank, comm.size, lambda text, code: world._abort(text, code, at_once=True), guard=guard
        )
        host_comm = comm.Split_type(MPI.COMM_TYPE_SHARED)  # the ranks on this host
        world = cls(comm.Dup(), None, host_comm, watchdog, MPI)
        sys.excepthook = lambda *error: world._die(error)
        threading.excepthook = lambda args: world._die(args[:3])
        faulthandler.enable()
        atexit.register(watchdog.announce_exit)
        report_hard_exits(comm.rank, comm.size, watchdog.announce_exit)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=world._leave)
        watchdog.start()
        with world.collective("dividing the cores"):
            cores = available_cores()
            sharing = sum(bool(cores & other) for other in host_comm.allgather(cores))
            world.hosts = comm.allreduce(int(host_comm.rank == 0))
        if "numpy" in sys.modules and comm.rank == 0:
            print_error("warning: NumPy was imported before World.join(); its threads cannot be planned now")
        world.threads = plan_threads(threads, default=usable_cores(cores, sharing))
        with world.collective("setting up the watchdogs"):
            path = host_comm.bcast(StatusTable.create_file(host_comm.size) if host_comm.rank == 0 else None)
            rows = host_comm.allgather((comm.rank, os.getpid(), guard.pid if guard else 0))
            watchdog.attach(StatusTable(path, host_comm.size, host_comm.rank), rows)
            if guard:
                guard.share(path, host_comm.rank, rows)
            host_comm.Barrier()
            if host_comm.rank == 0:  # no file is left, however the job ends
                os.unlink(path)
                unlink_mpi_memory()
        return world

    def run(self, main, name=None):
        """Call main() and exit with its exit code, or in a notebook return it (cli.run).

        Whatever ends one rank early ends the job: the other ranks would wait for it indefinitely.
        """

        def main_and_barrier():
            try:
                code = main()
            except EarlyExit:
                code = 0
            except Exception as error:
                self._let_others_speak(error)
                raise
            self.barrier(END_OF_PROGRAM)  # a rank that gets here while others are in another collective is reported
            return code

        return cli.run(main_and_barrier, name, abort=self._abort if self.size > 1 else None, is_rank=True)

    def print(self, *args, **kwargs):
        """Print on rank 0 only, in one write: what other processes of the job print does not come between."""
        if self.rank == 0:
            text = io.StringIO()
            print(*args, **kwargs, file=text)
            print(text.getvalue(), end="", flush=True)

    # -- collectives ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def collective(self, name, what="", moves_data=True):
        """Wrap every collective operation in `with world.collective("sum of step 3", "12 float32"):`.

        If the ranks do not agree on the number, the name and `what`, the job ends with a line that lists which ranks
        are about to do what; if one does not arrive in time (set_timeout), with a line that reports its location.
        Without `moves_data` the time inside does not count as comm_seconds.
        """
        if self.size == 1:
            yield
            return
        begin = time.perf_counter()
        self.watchdog.enter(name)
        try:
            self._compare(f"#{self.watchdog.number} '{name}'" + (f" ({what})" if what else ""))
            arrived = time.perf_counter()
            self.wait_seconds += arrived - begin
            yield
            if moves_data:
                self.comm_seconds += time.perf_counter() - arrived
        finally:
            self.watchdog.leave()

    def on_rank_0(self, name, fn, *args):
        """Call fn(*args) on rank 0 while the other ranks sleep until it is done, without a deadline as long as it does
        something (watchdog.py).

        Returns the result of fn on rank 0, None on the others.
        """
        with self.collective(f"on rank 0: {name}", moves_data=False):
            if self.rank:
                return self._wait_for_rank_0()
            if self.size == 1:
                return fn(*args)
            self.watchdog.heartbeat = self._beat
            result = fn(*args)
            self.watchdog.heartbeat = None
            self._send_to_all(_DONE)
            return result

    def _beat(self, work):
        self._send_to_all(_ALIVE, -1 if work is None else work)
        self.watchdog.take_heartbeat(work)  # of this rank as well

    def _send_to_all(self, message, work=0):
        for rank in range(1, self.size):
            self._heartbeats.Send(plain_array("q", [message, work]), rank)

    def _wait_for_rank_0(self):
        """Sleep most of the time: rank 0 may need the core."""
        message, pause = plain_array("q", [0, 0]), 1e-4
        self.watchdog.awaits_rank_0 = True
        while message[0] != _DONE:
            if self._heartbeats.Iprobe(source=0):
                self._heartbeats.Recv(message, source=0)
                self.watchdog.take_heartbeat(None if message[1] < 0 else message[1])
            else:
                time.sleep(pause)
                pause = min(1.2 * pause, 5e-3)
        self.watchdog.awaits_rank_0 = False

    def broadcast(self, array, name="broadcast"):
        """Overwrite `array` (1-D, NumPy or CuPy) on every rank with that of rank 0."""
        if self.size > 1:
            from tinygrad2.backend import device_of, to_device, to_host  # late: it imports NumPy

            with self.collective(name, f"{array.size} {array.dtype}"):
                for start in range(0, array.size, _BUCKET):
                    bucket = array[start : start + _BUCKET]
                    host = to_host(bucket)  # a NumPy array itself, so it is overwritten in place
                    self.comm.Bcast(host, root=0)
                    if host is not bucket:
                        bucket[...] = to_device(host, device_of(array))

    def broadcast_object(self, value, name="broadcast of an object"):
        """Returns rank 0's `value` (plain Python) on every rank."""
        if self.size == 1:
            return value
        with self.collective(name):
            return self.comm.bcast(value, root=0)

    def all_gather_object(self, value, name="all-gather of an object"):
        """Returns the list of the values (plain Python) of all ranks, on every rank."""
        if self.size == 1:
            return [value]
        with self.collective(name):
            return self.comm.allgather(value)

    def all_gather(self, array, name):
        """Returns the NumPy arrays of all ranks, which have equal shapes, on every rank: (size, *shape)."""
        import numpy as np  # late: threads must be planned before NumPy is loaded

        gathered = np.empty((self.size, *array.shape), array.dtype)
        gathered[self.rank] = array
        if self.size > 1:
            with self.collective(name, f"{array.size} {array.dtype} of each"):
                self.comm.Allgather(array, gathered)
        return gathered

    def barrier(self, name="barrier"):
        """Wait until every rank has called this."""
        with self.collective(name):
            pass  # the comparison itself synchronises them

    def set_timeout(self, seconds):
        """Set how long a collective may take; 0: no limit."""
        if self.watchdog:
            self.watchdog.timeout = seconds

    def require_size(self, ranks):
        """Raises UserError if the number of ranks is not `ranks`; None: any number is valid."""
        if ranks not in (None, self.size):
            raise UserError(f"--ranks {ranks}: there are {self.size}; start them by mpirun -n {ranks} python ..., or "
                            f"srun -n {ranks} --mpi=pmi2 (MPICH), --mpi=pmix (Open MPI)")  # fmt: skip

    def describe(self):
        """Lines for the log with the process number of each rank: mpirun reports only that of a killed one."""
        if self.size == 1:
            return []
        processes = self.all_gather_object((socket.gethostname(), os.getpid(), self.threads), "listing processes")
        hosts = {}
        for rank, (host, pid, threads) in enumerate(processes):
            hosts.setdefault(host, []).append((rank, pid, threads))
        lines = []
        for host, ranks in list(hosts.items())[:8]:
            threads = sum(number for _, _, number in ranks)
            pids = ", ".join(f"{rank} is {pid}" for rank, pid, _ in ranks[:8]) + (" ..." if len(ranks) > 8 else "")
            lines.append(f"{host}: {len(ranks)} rank(s) with {threads} thread(s) in all; processes: {pids}")
        return lines + [f"and {len(hosts) - 8} more hosts"] * (len(hosts) > 8)

    def require_same(self, what, value):
        """Raises UserError on all ranks if `value` (plain Python) differs between them."""
        values = self.all_gather_object(value, f"comparing {what}")
        for rank, other in enumerate(values):
            if other != values[0]:
                raise UserError(f"the ranks have different {what}: {_difference(values[0], other, rank)}")

    def _compare(self, call):
        """Wait for all ranks, and check that they are about to do the same: otherwise end the job."""
        code = zlib.crc32(to_bytes(call))
        extremes = plain_array("q", [0, 0])
        self._agreement.Allreduce(plain_array("q", [code, -code]), extremes, self._mpi.MAX)
        if extremes[0] == -extremes[1]:
            return
        groups = {}
        for rank, other in enumerate(self._agreement.allgather(call)):
            groups.setdefault(other, []).append(rank)
        lines = (f"rank{'s' * (len(ranks) > 1)} {_list(ranks)} {'are' if len(ranks) > 1 else 'is'} at {other}"
                 for other, ranks in groups.items())  # fmt: skip
        if self.rank == 0:
            self._abort(f"the ranks are in different collectives: {'; '.join(lines)}. Ending the job before data is "
                        "transferred\n", 1)  # fmt: skip
        time.sleep(5)  # rank 0 reports it
        self._abort("the ranks are in different collectives\n", 1)

    # -- ending the job ------------------------------------------------------------------------------------------------

    def _leave(self):
        """In a process that a rank has forked: it is no rank, and does not end the job."""
        _is_no_rank(self.watchdog.announce_exit)
        if self.watchdog.guard:
            atexit.unregister(self.watchdog.guard.ending)
        self.watchdog = None
        sys.excepthook, threading.excepthook = sys.__excepthook__, threading.__excepthook__
        with contextlib.suppress(ValueError):  # of another thread
            signal.set_wakeup_fd(-1)

    def _die(self, error):
        """End all ranks because of an exception in this one."""
        if isinstance(error[1], KeyboardInterrupt):  # while modules are imported
            self._abort("interrupted\n", 130)
        self._let_others_speak(error[1])
        if line := explain(error[1]):
            self._abort(one_line(line) + "\n", 2)
        self._abort("".join(traceback.format_exception(*error)), cli.exit_code(error[1]))

    def _let_others_speak(self, error):
        """MPI raises this if another rank has died: that one's guard ends the job first."""
        if self._mpi and isinstance(error, self._mpi.Exception):
            time.sleep(OTHERS_FIRST_SECONDS)

    def _abort(self, text, code, at_once=False):
        """Print the text and end all ranks with this exit code. Never returns."""
        if self.watchdog is None:  # in a process that a rank has forked
            write_descriptor(2, to_bytes(text))
            leave_now(code)
        if not self._ending.acquire(blocking=False):
            time.sleep(10)  # another thread of this process is already aborting
        self.watchdog.announce_exit()
        if self.rank and not at_once:
            time.sleep(1.0)  # if rank 0 has the same error, it reports it for all ranks
        if threading.current_thread() is threading.main_thread():
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
        sender = f"rank {self.rank} of {self.size}, {socket.gethostname()} pid {os.getpid()}"
        write_descriptor(2, to_bytes(f"[{sender}] {text}"))  # one write: lines of ranks do not mix
        wait_until_read(2)
        time.sleep(0.2)  # mpirun forwards the text before it is asked to kill
        timer = threading.Timer(3, leave_now, [code])  # Abort may return, or hang on a dead network
        timer.daemon = True
        try:
            timer.start()
            self._mpi.COMM_WORLD.Abort(code)
        finally:  # neither works without memory: then the guard ends the job
            self.watchdog.announce_exit(alone=True)
            leave_now(code)


def _is_no_rank(announce_exit):
    """In a process that a rank has forked: its end is not announced as the rank's."""
    atexit.unregister(announce_exit)
    os._exit = leave_now


def _start_mpi(tasks, announce_exit):
    """The module mpi4py.MPI, whose import connects to the other ranks. Exits with one line if they are not `tasks`."""
    os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")  # idle ranks of Open MPI give way to busy ones
    timer = exit_unless_started(announce_exit)
    try:
        from mpi4py import MPI
    except ImportError as error:
        exit_with_line(
            f"mpirun started {tasks} ranks, but mpi4py cannot be imported ({error}): pip install -e \".[mpi]\""
        )
    timer.cancel()
    if MPI.COMM_WORLD.size != tasks:
        exit_with_line(
            f"{tasks} tasks were started, but MPI sees {MPI.COMM_WORLD.size}: mpirun and mpi4py belong to different "
            "MPIs (use the mpirun next to this Python, or srun --mpi=pmi2 for MPICH, --mpi=pmix for Open MPI)"
        )
    return MPI


def _list(ranks):
    return ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")


def _difference(first, other, rank):
    if isinstance(first, dict) and isinstance(other, dict):
        for key in first.keys() | other.keys():
            if first.get(key) != other.get(key):
                return f"{key} is {first.get(key)} on rank 0, {other.get(key)} on rank {rank}"
    return f"{first} on rank 0, {other} on rank {rank}"
