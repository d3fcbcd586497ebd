"""A training in which one rank fails at one step, for test_failures.py:  planted.py KIND RANK STEP [flags]."""

import contextlib
import ctypes
import functools
import os
import resource
import signal
import sys
import threading
import time

from tinygrad2.distributed.world import World

world = World.join()

import train_gpt2  # noqa: E402  after the threads have been planned
from tinygrad2.distributed.reducer import Reducer  # noqa: E402
from tinygrad2.system.signals import leave_now  # noqa: E402

kind, rank, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


def is_here(trainer):
    return world.rank == rank and trainer.done == step


def send(number):
    """This process sends itself a signal, and does nothing else should it survive."""
    os.kill(os.getpid(), number)
    time.sleep(1000)


def send_parent(number, *own):
    os.kill(os.getppid(), number)
    for signal_number in own:
        send(signal_number)
    time.sleep(1000)


def limit(name, value):
    resource.setrlimit(getattr(resource, name), (value, value))


def overflow():
    """Calls itself in C until its stack ends."""
    compare_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    limit("RLIMIT_STACK", 1 << 16)
    array = (ctypes.c_int * 2)()
    sys.setrecursionlimit(1 << 30)
    sort = ctypes.CDLL(None).qsort
    compare = compare_type(lambda a, b: sort(array, 2, 4, compare) or 0)
    compare(None, None)


def fork(end):
    """A child of this rank ends; the rank goes on, and is then killed."""
    child = os.fork()
    if child == 0:
        end()
    os.waitpid(child, 0)
    os.kill(os.getpid(), signal.SIGKILL)


def raise_in_thread():
    threading.Thread(target=lambda: {}["planted"]).start()
    time.sleep(1000)


def raise_planted():
    raise RuntimeError("planted")


def run_forever():
    while True:
        pass


def use_mpi(function):
    from mpi4py import MPI

    function(MPI)
    time.sleep(1000)


def grow():
    limit("RLIMIT_AS", 1 << 28)
    return [bytearray(1 << 24) for _ in range(1000)]


def recurse(depth=0):
    return recurse(depth + 1)


def block_signals():
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    time.sleep(1000)


FAILURES = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "crashed": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "aborted": os.abort,
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    **{f"signal {number}": functools.partial(send, number) for number in signal.valid_signals()},
    "stack overflow": overflow,
    "recursion": recurse,
    "raised": raise_planted,
    "raised in a thread": raise_in_thread,
    "memory": grow,
    "cpu time": lambda: (limit("RLIMIT_CPU", 1), run_forever()),
    "no more files": lambda: (limit("RLIMIT_NOFILE", 0), open("planted")),
    "exit 3": lambda: sys.exit(3),
    "exit 0": lambda: sys.exit(0),
    "exit 256": lambda: sys.exit(256),
    "exit -1": lambda: sys.exit(-1),
    "exit 2**40": lambda: sys.exit(2**40),
    "exit text": lambda: sys.exit("planted"),
    "exited hard": lambda: os._exit(5),
    "exited hard with 0": lambda: os._exit(0),
    "exited hard with 256": lambda: os._exit(256),
    "exited in a library": lambda: ctypes.CDLL(None)._exit(0),
    "exited in a library by exit": lambda: ctypes.CDLL(None).exit(0),
    "exited in a library with 77": lambda: ctypes.CDLL(None)._exit(77),
    "another program": lambda: os.execv("/bin/true", ["true"]),
    "another program that lasts": lambda: os.execv("/bin/sleep", ["sleep", "1000"]),
    "its guard killed": lambda: send_parent(signal.SIGKILL),
    "its guard aborted": lambda: send_parent(signal.SIGABRT),
    "its guard stopped and killed": lambda: (os.kill(os.getppid(), signal.SIGSTOP), send_parent(signal.SIGKILL)),
    "killed, its guard stopped": lambda: send_parent(signal.SIGSTOP, signal.SIGKILL),
    "files closed": lambda: (os.closerange(3, 1 << 12), time.sleep(1000)),
    "all files closed": lambda: (os.closerange(0, 1 << 12), time.sleep(1000)),
    "signals blocked": block_signals,
    "child exited hard": lambda: fork(lambda: leave_now(0)),
    "child exited": lambda: fork(sys.exit),
    "child killed": lambda: fork(lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "asleep": lambda: time.sleep(1000),
    "busy": run_forever,
    "asleep in a library": lambda: ctypes.PyDLL(None).sleep(1000),
    "MPI_Abort 0": lambda: use_mpi(lambda MPI: MPI.COMM_WORLD.Abort(0)),
    "MPI_Abort 7": lambda: use_mpi(lambda MPI: MPI.COMM_WORLD.Abort(7)),
    "MPI_Abort 256": lambda: use_mpi(lambda MPI: MPI.COMM_WORLD.Abort(256)),
    "MPI_Finalize": lambda: use_mpi(lambda MPI: MPI.Finalize()),
    "communicator freed": lambda: world.comm.Free(),
}


def fail():
    if kind in FAILURES:
        FAILURES[kind]()


class Return(BaseException):
    """Ends main() early, as if it had returned."""


inner_step, inner_collective, main = train_gpt2.Trainer.step, Reducer.collective, train_gpt2.main


def planted_step(trainer, loader, *more):
    if is_here(trainer):
        fail()
        if kind == "returned":
            raise Return
        trainer.reducer.planted = True
    return inner_step(trainer, loader, *more)


@contextlib.contextmanager
def no_collective(reducer):
    """This rank keeps its own gradient and goes on to the next collective."""
    reducer.algorithm, algorithm = None, reducer.algorithm
    yield
    reducer.algorithm = algorithm


def planted_collective(reducer, moves_data=True):
    planted, reducer.planted = getattr(reducer, "planted", False), False
    if planted and kind == "skipped":
        return no_collective(reducer)
    if planted and kind == "other size":
        return world.collective(reducer.name, "tree of 77 float32 in 1")
    if planted and kind == "other dtype":
        return world.collective(reducer.name, f"tree of {reducer.flat.size} float64 in {len(reducer.buckets)}")
    if planted and kind == "other operation":
        return world.collective(reducer.name, f"largest of {reducer.flat.size} float32 in {len(reducer.buckets)}")
    if planted and kind == "other collective":
        return world.collective("broadcast", f"{reducer.flat.size} float32")
    return inner_collective(reducer, moves_data)


def planted_main(world, argv):
    try:
        return main(world, argv)
    except Return:
        return 0


train_gpt2.Trainer.step, Reducer.collective = planted_step, planted_collective
world.run(lambda: planted_main(world, sys.argv[4:]))
