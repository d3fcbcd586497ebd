"""The programs in processes forked from this one, which has the libraries and kernels already: for tests of what a
program does, not of how its process starts (test_train.py). A short training takes a tenth of the time."""

import functools
import os
import subprocess

import numpy as np
import test_train
from command_lines import programs, run_forked

from models import GPT, GPTConfig
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.optim import Adam

MAINS = {test_train.ROOT / program.name: program.main for program in programs() if program.name.endswith(".py")}


def python(script, *arguments, cwd, **environment):
    """As test_train.python."""
    if environment or script not in MAINS or not hasattr(os, "fork"):
        return test_train.python(script, *arguments, cwd=cwd, **environment)
    load_kernels()
    argv = list(map(str, arguments))
    outcome = run_forked(MAINS[script], argv, str(cwd), seconds=600)
    return subprocess.CompletedProcess(argv, outcome.code, outcome.out, outcome.err)


def train(folder, flags="", script=test_train.ROOT / "train_gpt2.py", **environment):
    """As test_train.train."""
    flags = *test_train.SMALL.split(), "--data", folder / "text.txt", *flags.split()
    return python(script, *flags, cwd=folder, **environment)


@functools.cache
def load_kernels():
    """Compute a step here: only then are Numba's own functions loaded, which takes longer than most trainings."""
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=32, block_size=16, vocab_size=290), seed=1)
    flat, ids = FlatBuffers(model), np.zeros((1, 16), int)
    flat.zero_grad()
    model.loss(ids, ids).backward()
    Adam(flat).step(1e-3)
