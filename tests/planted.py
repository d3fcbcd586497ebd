"""A training in which one rank goes wrong at one step, for test_failures.py:  planted.py KIND RANK STEP [flags]."""

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


def here(trainer):
    return world.rank == rank and trainer.done == step


def mishap():
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
    if kind == "asleep":
        time.sleep(1000)
    if kind == "busy":
        while True:
            pass


class Return(BaseException):
    pass


inner_step, travelling, main = train_gpt2.Trainer.step, Reducer.travelling, train_gpt2.main


def planted_step(trainer, loader):
    if here(trainer):
        mishap()
        if kind == "returned":
            raise Return
        trainer.reducer.planted = True
    return inner_step(trainer, loader)


def planted_travelling(reducer, is_moving=True):
    planted, reducer.planted = getattr(reducer, "planted", False), False
    if planted and kind == "skipped":
        reducer.size, size = 1, reducer.size  # this rank keeps its own gradient and goes on to what comes next
        import contextlib

        @contextlib.contextmanager
        def alone():
            yield
            reducer.size = size

        return alone()
    if planted and kind == "other size":
        return world.collective(reducer.name, "tree of 77 float32 in 1")
    if planted and kind == "other dtype":
        return world.collective(reducer.name, f"tree of {reducer.flat.size} float64 in {len(reducer.buckets)}")
    if planted and kind == "other operation":
        return world.collective(reducer.name, f"largest of {reducer.flat.size} float32 in {len(reducer.buckets)}")
    if planted and kind == "other collective":
        return world.collective("broadcast", f"{reducer.flat.size} float32")
    return travelling(reducer, is_moving)


def planted_main(world, argv):
    try:
        return main(world, argv)
    except Return:
        return 0


train_gpt2.Trainer.step, Reducer.travelling = planted_step, planted_travelling
world.run(lambda: planted_main(world, sys.argv[4:]))
