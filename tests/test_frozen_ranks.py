"""Parameters that are frozen for a part of a training, on several ranks: the same bits as with one."""

import subprocess
import sys

import pytest
from marks import slow_but
from test_distributed import CLEAN, mpirun, same_bits
from test_distributed import folder as folder  # a fixture
from test_train import metrics

from tinygrad2.io.weights import load_weights

SCRIPT = """
import sys
from tinygrad2.distributed.world import World
world = World.join()
import train_gpt2
from tinygrad2.distributed import reducer
reducer.BUCKET = reducer.OVERLAP_BUCKET = 1 << 16      # several, some of them with nothing but what is frozen
toggles = {0: ("wpe", False), 2: ("wte", False), 4: ("h.0", False), 6: ("wte", True), 7: ("h.1.ln", False),
           9: ("h.0", True), 11: ("h.1", False)}
step = train_gpt2.Trainer.step
def toggling(self, *args):
    if self.done in toggles:
        prefix, value = toggles[self.done]
        for name, parameter in self.model.named_parameters():
            if name.startswith(prefix):
                parameter.requires_grad = value
    result = step(self, *args)
    if self.done == int(sys.argv[1]) < 14:
        self.stopping = 15                             # as SIGTERM does
    return result
train_gpt2.Trainer.step = toggling
world.run(lambda: train_gpt2.main(world, sys.argv[2:]))
"""
FLAGS = ("--data text.txt --n-layer 2 --n-head 2 --n-embd 96 --block-size 16 --vocab-size 300 --batch-size 8 "
         "--micro-batch-size 1 --steps 14 --dropout 0.1 --grad-clip 0.3 --weight-decay 0.1 --eval-every 7 "
         "--sample-tokens 0 --compare-every 5")  # fmt: skip


def outcome(n, folder, name, flags, parts=()):
    """(printed, metrics, tensors) of the training by n ranks. `parts`: (steps, ranks, flags) of those that were stopped
    after so many steps, to be resumed by the next."""
    (folder / "freezing.py").write_text(SCRIPT)
    run = f"--metrics {name}.jsonl --weights-out {name}.bin --run-dir run-{name}".split()
    for i, (steps, ranks, more) in enumerate([*parts, (14, n, flags)]):
        command = ["freezing.py", str(steps), *FLAGS.split(), *run, *more.split(), *(["--resume"] if i else [])]
        if ranks == 1:
            result = subprocess.run([sys.executable, *command], cwd=folder, env=CLEAN, capture_output=True, text=True)
        else:
            result = mpirun(ranks, *command, cwd=folder)
        assert result.returncode == (0 if steps == 14 else 128 + 15), result.stderr
    return result.stdout, metrics(folder / f"{name}.jsonl"), load_weights(folder / f"{name}.bin").tensors


@pytest.fixture(scope="module")
def alone(folder):
    return outcome(1, folder, "alone", "")


SAME = {
    "2 ranks": (2, "", ()),
    "4 ranks, ZeRO": (4, "--zero 1", ()),
    "2 ranks, overlap, recompute": (2, "--overlap yes --recompute", ()),
    "4 ranks, overlap, ZeRO": (4, "--overlap yes --zero 1", ()),
    "resumed": (1, "", ((3, 1, ""), (8, 1, ""))),
    "resumed by others": (2, "--zero 1", ((5, 4, "--zero 1 --overlap yes"), (10, 1, ""))),
}


@pytest.mark.parametrize("name", slow_but(("4 ranks, overlap, ZeRO", "resumed by others"), SAME, long=("2 ranks",)))
def test_the_bits_of_one_process(alone, folder, name):
    n, flags, resumed = SAME[name]
    several = outcome(n, folder, name.replace(" ", "-").replace(",", ""), flags, resumed)
    assert same_bits(alone, several)
    assert alone[1][-1]["loss"] < alone[1][0]["loss"]


def test_ranks_that_freeze_different_parameters_are_stopped(folder):
    (folder / "freezing.py").write_text(SCRIPT.replace("self.done in toggles", "self.done in toggles and world.rank"))
    result = mpirun(2, "freezing.py", "14", *FLAGS.split(), "--run-dir", "run-different", cwd=folder)
    assert result.returncode and "the ranks are in different collectives" in result.stderr
    assert "frozen 1: " in result.stderr
