"""Programs in which the nth request for memory or for a file is refused: each ends in one line, with its files whole.

    python tests/scarce_memory.py [TRIES] [SEED]

In a forked process (command_lines.py) the nth call of NumPy's makers of arrays raises MemoryError, or of open, os.open
or mmap OSError with ENOMEM: only that one, or all from then on. A try passes if the program ends properly or with one
line and exit code 2; if only its outputs have changed, and those are absent or can be read; if all checkpoints can be
read, and no temporary file is left that the next start does not remove. Prints a line per try that does not, and the
counts. test_forged_files.py runs a few.
"""

import builtins
import errno
import mmap
import os
import random
import shutil
import sys
import tempfile
from collections import Counter

import numpy as np
from broken_disks import temporary
from command_lines import run_forked
from inputs import READS, mains, make_inputs, quick
from odd_kinds import problem_of

from tinygrad2.errors import UserError
from tinygrad2.io.weights import load_weights
from tinygrad2.system.temporary import sweep
from tinygrad2.training.checkpoint import list_checkpoints, read_checkpoint
from tinygrad2.training.checkpoint import sweep as sweep_checkpoints

MAKERS = ("empty", "zeros", "ones", "full", "empty_like", "zeros_like", "ones_like", "array", "asarray", "concatenate",
          "frombuffer", "stack", "arange", "ascontiguousarray")  # fmt: skip
OUTPUTS = ("new", "run", "out", "prepared", "curves", "answers.jsonl", ".tinygrad2", "data/.tinygrad2", "metrics.")
SKIPPED = ("launch", "verify", "eval perplexity", "eval hellaswag")  # take seconds, or start other processes


class Refuse:
    """Counts requests; refuses number n, and with `always` those after it."""

    def __init__(self, n, always):
        self.n, self.always, self.count = n, always, 0

    def install(self):
        for name in MAKERS:
            setattr(np, name, self._wrapped(getattr(np, name), MemoryError("Unable to allocate 1 GiB")))
        no_memory = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        builtins.open = self._wrapped(builtins.open, no_memory)
        os.open = self._wrapped(os.open, no_memory)
        mmap.mmap = self._wrapped(mmap.mmap, no_memory)

    def _wrapped(self, function, error):
        def call(*args, **kwargs):
            self.count += 1
            if self.count == self.n or self.always and self.count > self.n:
                raise error
            return function(*args, **kwargs)

        return call


def reads():
    """The command lines that are tried, the first of each kind of input."""
    return [read for read in READS if read.program not in SKIPPED]


def attempt(read, n, always, base, folder, run):
    """(Outcome, what is wrong or "") of a program whose nth request is refused."""
    shutil.copytree(base, folder, symlinks=True)

    def main(argv):
        Refuse(n, always).install()
        return run[read.program](argv)

    try:
        outcome = run_forked(main, read.words, folder, seconds=120)
        if always:  # nothing could be opened any more, folders to be removed neither: the next start does it
            for here, _, _ in os.walk(folder):
                sweep(here), sweep_checkpoints(here)
        return outcome, problem_of(outcome) or files_problem(outcome, folder)
    finally:
        shutil.rmtree(folder)


def count(read, base, folder, run):
    """How many requests the program makes if none is refused."""
    shutil.copytree(base, folder, symlinks=True)
    refuse = Refuse(0, False)

    def main(argv):
        refuse.install()
        code = run[read.program](argv)
        with open("requests", "w", encoding="ascii") as file:
            file.write(str(refuse.count))
        return code

    try:
        run_forked(main, read.words, folder, seconds=120)
        with open(os.path.join(folder, "requests"), encoding="ascii") as file:
            return int(file.read())
    finally:
        shutil.rmtree(folder)


def files_problem(outcome, folder):
    """What is wrong with the files that a program has left, or ""."""
    others = [path for path in outcome.changed if not path.startswith(OUTPUTS)]
    if others:
        return f"changed {others[:3]}"
    if left := temporary(folder):
        return f"left {left[:3]}"
    try:
        for run_dir in ("run", "new"):
            for path in list_checkpoints(os.path.join(folder, run_dir, "checkpoints")):
                read_checkpoint(path)
        if os.path.exists(os.path.join(folder, "new.bin")):
            load_weights(os.path.join(folder, "new.bin")).tensors.items()
    except UserError as error:
        return str(error)
    return ""


def draw(rng, requests, base, folder, run):
    """(what was tried, Outcome, what is wrong or ""); `requests` {Read: how many it makes} is filled in."""
    read, always = rng.choice(reads()), rng.random() < 0.5
    if read not in requests:
        requests[read] = count(read, base, folder, run)
    n = rng.randint(1, requests[read])
    outcome, problem = attempt(read, n, always, base, folder, run)
    return f"{read}: request {n} of {requests[read]}{' and all after it' * always}", outcome, problem


def main():
    numbers = [int(word) for word in sys.argv[1:]]
    number, seed = numbers + [100, 1][len(numbers) :]
    quick()
    run, counts, rng, requests = mains(), Counter(), random.Random(seed), {}
    with tempfile.TemporaryDirectory() as top:
        base, folder = os.path.join(top, "base"), os.path.join(top, "try")
        make_inputs(base)
        for _ in range(number):
            what, outcome, problem = draw(rng, requests, base, folder, run)
            counts[outcome.code] += 1
            if problem:
                counts["FAULT"] += 1
                print(f"FAULT {what}: {problem}: {outcome.err.strip()[-1500:]}", flush=True)
    print(dict(counts))


if __name__ == "__main__":
    main()
