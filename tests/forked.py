"""A training in a process forked from this one, which has the libraries and kernels already: for tests of what a
training does, not of how its process starts (test_train.train). It takes a tenth of the time."""

import functools
import os
import subprocess

import numpy as np
import test_train
from command_lines import programs, run_forked

from models import GPT, GPTConfig
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.optim import Adam


def train(folder, flags="", **environment):
    """As test_train.train."""
    if environment or not hasattr(os, "fork"):
        return test_train.train(folder, flags, **environment)
    load_kernels()
    argv = [*test_train.SMALL.split(), "--data", str(folder / "text.txt"), *flags.split()]
    outcome = run_forked(next(programs()).main, argv, str(folder), seconds=600)
    return subprocess.CompletedProcess(argv, outcome.code, outcome.out, outcome.err)


@functools.cache
def load_kernels():
    """Compute a step here: only then are Numba's own functions loaded, which takes longer than most trainings."""
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=32, block_size=16, vocab_size=290), seed=1)
    flat, ids = FlatBuffers(model), np.zeros((1, 16), int)
    flat.zero_grad()
    model.loss(ids, ids).backward()
    Adam(flat).step(1e-3)
