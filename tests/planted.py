"""A training in which one rank fails at one step, for test_failures.py:  planted.py KIND RANK STEP [flags]."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time

from tinygrad2.distributed.world import World

world = World.join()

import train_gpt2  # noqa: E402  after the threads have been planned
from tinygrad2.distributed.reducer import Reducer  # noqa: E402

kind, rank, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


def is_here(trainer):
    return world.rank == rank and trainer.done == step


def fail():
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "crashed":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if kind == "raised":
        raise RuntimeError("planted")
    if kind == "raised in a thread":
        threading.Thread(target=lambda: {}["planted"]).start()
        time.sleep(1000)
    if kind == "exit 3":
        sys.exit(3)
    if kind == "exit 0":
        sys.exit(0)
    if kind == "exited hard":
        os._exit(5)
    if kind == "exited hard with 0":
        os._exit(0)
    if kind == "exited in a library":
        ctypes.CDLL(None)._exit(0)
    if kind == "another program":
        os.execv("/bin/true", ["true"])
    if kind == "another program that lasts":
        os.execv("/bin/sleep", ["sleep", "1000"])
    if kind == "its guard killed":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(1000)
    if kind == "killed, its guard stopped":
        os.kill(os.getppid(), signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "aborted":
        os.abort()
    if kind == "asleep":
        time.sleep(1000)
    if kind == "busy":
        while True:
            pass


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
