"""Run by test_checkpoint.py: write a checkpoint, and die at the first call to the system, at the second, ...

    python crash_everywhere.py FOLDER

FOLDER holds two checkpoints (steps 1 and 2) already. A child writes step 3 and removes the oldest; at its nth call it
dies, without a chance to clean up, and of the bytes it was writing only half arrive. After each death the newest
complete checkpoint must be step 2, or step 3 once that has its name, and nothing may look damaged.
"""

import builtins
import os
import shutil
import sys

import numpy as np

from tinygrad2.training.checkpoint import (
    Checkpoint,
    list_checkpoints,
    newest_checkpoint,
    read_checkpoint,
    remove_old_checkpoints,
    sweep,
    write_checkpoint,
)

CALLS = ("fsync", "rename", "replace", "mkdir", "makedirs", "unlink", "rmdir", "open")


def checkpoint(step):
    """A small one, with other values in each step."""
    weights = {name: np.full(shape, step, np.float32) for name, shape in (("a", (3, 5)), ("b", (1000,)))}
    moments = {f"{letter}.{name}": array.ravel() * 2 for letter in "mv" for name, array in weights.items()}
    state = {"step": step, "val_loss": 1.0 / step, "position": [0, step]}
    return Checkpoint(weights, moments, step, state, "{}", {"n_layer": 1}, b'{"step": 0}\n' * step)


def die_at(n):
    """From now on the nth system call is the last."""
    left = [n]

    def count():
        left[0] -= 1
        if left[0] == 0:
            os._exit(9)

    for name in CALLS:
        original = getattr(os, name)
        setattr(os, name, lambda *args, original=original, **kwargs: (count(), original(*args, **kwargs))[1])
    really_open = builtins.open

    class File:
        def __init__(self, *args, **kwargs):
            self.file = really_open(*args, **kwargs)

        def write(self, data):
            half = memoryview(data)[: len(data) // 2]
            self.file.write(half)
            self.file.flush()
            count()
            return len(half) + self.file.write(memoryview(data)[len(data) // 2 :])

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

    builtins.open = File


def main(folder):
    start = folder + ".start"
    shutil.copytree(folder, start)
    for n in range(1, 1000):
        child = os.fork()
        if child == 0:
            die_at(n)
            write_checkpoint(folder, checkpoint(3))
            remove_old_checkpoints(folder, keep=1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9), code
        for path in list_checkpoints(folder):
            read_checkpoint(path)
        newest, damaged = newest_checkpoint(folder, log=None)
        expected = checkpoint(newest.step)
        assert newest.step in (2, 3) and not damaged and newest.state == expected.state
        assert newest.t == expected.t and newest.history == expected.history
        for read, written in ((newest.weights, expected.weights), (newest.moments, expected.moments)):
            assert all(np.array_equal(read[name], written[name]) for name in written)
        sweep(folder)
        assert all(name.startswith("step_") for name in os.listdir(folder)), os.listdir(folder)
        if code == 0:
            assert newest.step == 3 and len(list_checkpoints(folder)) == 1
            print(n - 1)
            return
        shutil.rmtree(folder)
        shutil.copytree(start, folder)
    raise AssertionError("it never ended")


if __name__ == "__main__":
    main(sys.argv[1])
