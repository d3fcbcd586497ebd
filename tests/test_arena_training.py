"""Whole trainings whose steps have their arrays in an arena, on the stand-in for CuPy, where arrays lie where they are
told to: no place is taken twice, the block is near the lower bound, and the bits are those of a training without."""

import bisect
import contextlib

import fake_cublaslt
import numpy as np
import pytest
import strict_cupy
import strict_memory
from cuda_host import needs_compiler, running
from test_frozen import Tokens

import train_gpt2
from models import GPT, GPTConfig
from tinygrad2.cli import call
from tinygrad2.distributed.world import World
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.gpu.arena import Arena
from tinygrad2.precision import computing, matmul_precision
from tinygrad2.tensor import no_grad
from tinygrad2.training.lookahead import Lookahead
from train_gpt2 import Trainer, parse

pytestmark = needs_compiler
FLAGS = ("--device cuda --n-layer 2 --n-embd 16 --n-head 2 --block-size 8 --vocab-size 60 --batch-size 4 --steps 8 "
         "--order sequential --warmup-steps 2 --lr 1e-2")  # fmt: skip


@pytest.fixture
def cupy(monkeypatch):
    cupy = strict_cupy.install(monkeypatch)
    fake_cublaslt.install(monkeypatch)
    monkeypatch.setattr(train_gpt2, "gemm_peak", lambda xp: 1e12)
    return cupy


class Watched(strict_memory.UnownedMemory):
    """Memory of an array: nothing else that is alive may lie there."""

    alive = []  # (first byte, last byte + 1), ascending

    def __init__(self, ptr, size, owner, device_id=-1):
        super().__init__(ptr, size, owner, device_id)
        self.span = None
        i = bisect.bisect(self.alive, (ptr, ptr + size))
        assert i == 0 or self.alive[i - 1][1] <= ptr, "it overlaps the one below"
        assert i == len(self.alive) or self.alive[i][0] >= ptr + size, "it overlaps the one above"
        self.span = ptr, ptr + size
        self.alive.insert(i, self.span)

    def __del__(self):
        if self.span:
            self.alive.remove(self.span)


class Batches(Tokens):
    """Step `other` has shorter rows."""

    other = -1

    def micro_batches(self, position, rows):
        T = 5 if position[1] == self.other * self.config.batch_size else 8
        for first, x, y in super().micro_batches(position, rows):
            yield first, x[:, :T], y[:, :T]

    def after(self, position):
        return position[0], position[1] + self.config.batch_size


def trained(flags, other=-1, watch=None):
    """(losses and norms, weights, arena, arrays from the pool in each step) of a training by Lookahead."""
    config, model_config, _ = parse(f"{FLAGS} {flags}".split())
    trainer, loader, found, requests = Trainer(config, model_config, World()), Batches(config), [], []
    loader.other, lookahead = other, Lookahead(trainer)
    with computing(config), running(check=False):
        for _ in range(config.steps):
            steps = lookahead.step(loader, read=True)
            found += [(step.loss, step.norm) for step in steps]
            requests.append(lookahead.arena.requests)
            if watch:
                watch(lookahead)
    return found, trainer.flat.data.get(), lookahead.arena, requests


def usual(flags, monkeypatch, other=-1):
    with monkeypatch.context() as patch:
        patch.setattr(Arena, "step", lambda self: contextlib.nullcontext())
        found, weights, arena, _ = trained(f"{flags} --cuda-graph no", other)
    assert arena.plan is None
    return found, weights


KINDS = ["--cuda-graph no", "--cuda-graph no --micro-batch-size 2 --dtype bfloat16", "--cuda-graph yes",
         "--cuda-graph yes --micro-batch-size 2 --recompute --dtype bfloat16",
         "--cuda-graph yes --dropout 0.1 --dtype bfloat16", "--read-every 1 --micro-batch-size 2"]  # fmt: skip


@pytest.mark.parametrize("flags", KINDS)
def test_an_arena_changes_no_bit(cupy, monkeypatch, flags):
    pytest.importorskip("ml_dtypes")
    monkeypatch.setattr(cupy.cuda, "UnownedMemory", Watched)
    graphs = []
    found, weights, arena, requests = trained(flags, watch=lambda ahead: graphs.append(
        bool(ahead.steps and ahead.steps.graph)))  # fmt: skip
    assert any(graphs) == ("yes" in flags)
    assert requests[0] > 50 and requests[4:] == [0] * 4 and arena.plan.outliving == 0
    assert arena.plan.bound <= arena.plan.bytes <= 1.05 * arena.plan.bound
    before, same = usual(flags.replace("--cuda-graph yes", ""), monkeypatch)
    assert found == before and np.array_equal(weights, same)


@pytest.mark.parametrize("flags", ["--cuda-graph yes", "--read-every 1"])
def test_a_step_of_another_shape_comes_from_the_pool(cupy, monkeypatch, flags):
    monkeypatch.setattr(cupy.cuda, "UnownedMemory", Watched)
    found, weights, arena, requests = trained(flags, other=5)
    assert requests[4] == requests[6] == requests[7] == 0 and requests[5] > 30
    before, same = usual(flags.replace("--cuda-graph yes", ""), monkeypatch, other=5)
    assert found == before and np.array_equal(weights, same)


def test_places_that_overlap_would_be_noticed(cupy, monkeypatch):
    """The test of these tests."""
    plan = Arena._begin

    def spoilt(self, planned):
        planned.places = [place and place // 2 // 512 * 512 for place in planned.places]
        plan(self, planned)

    monkeypatch.setattr(Arena, "_begin", spoilt)
    with pytest.raises(AssertionError, match="shares memory with another one"):
        trained("--cuda-graph no")
    monkeypatch.setattr(cupy.cuda, "UnownedMemory", Watched)
    with pytest.raises(AssertionError, match="it overlaps"):
        trained("--cuda-graph no")


MORE = ["--eval-every 3 --sample-every 4 --sample-tokens 5 --val-fraction 0.2 --read-every 2", "--zero 1",
        "--kernels reference", "--dtype float16 --micro-batch-size 1 --reduce-order tree --checkpoint-every 3"]


@pytest.mark.parametrize("flags", MORE)
def test_a_training_with_all_that_happens_between_steps(cupy, monkeypatch, tmp_path, capsys, flags):
    pytest.importorskip("ml_dtypes")
    (tmp_path / "text.txt").write_text("The cat sat on the mat. The dog sat on the cat.\n" * 20)
    monkeypatch.setattr(cupy.cuda, "UnownedMemory", Watched)
    weights = []
    for name in ("with", "without"):
        files = (f"--data {tmp_path}/text.txt --weights-out {tmp_path}/{name}.bin --metrics {tmp_path}/{name}.jsonl "
                 f"--run-dir {tmp_path}/{name}")  # fmt: skip
        argv = f"{FLAGS} {files} --n-layer 1 --batch-size 2 --vocab-size 270 --compare-every 0 {flags}".split()
        with running(check=False), monkeypatch.context() as patch:
            if name == "without":
                patch.setattr(Arena, "step", lambda self: contextlib.nullcontext())
            assert train_gpt2.main(World(), argv) == 0
        weights.append((tmp_path / f"{name}.bin").read_bytes()[-20_000:])
        printed = capsys.readouterr().out
        assert ("more than are in use at once" in printed) == (name == "with"), printed
        assert "of it in one block after some steps" in printed
    assert weights[0] == weights[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("V, C", [(300, 64), (50, 128), (2000, 32)])
def test_validation_needs_what_the_plan_says(cupy, dtype, V, C):
    """Which runs between steps, beside their arena."""
    pytest.importorskip("ml_dtypes")
    model, ids = GPT(GPTConfig(32, V, n_layer=2, n_head=2, n_embd=C), seed=1), np.arange(4 * 32).reshape(4, 32) % V
    FlatBuffers(model, "cuda")
    arena = Arena(cupy, str)
    with running(check=False), matmul_precision("highest" if dtype == "float32" else dtype), no_grad():
        for _ in range(3):
            with arena.step():
                model.loss(ids, ids)
    assert arena.plan.bound == pytest.approx(model.config.forward_space(4, 32, dtype), rel=0.06)


def test_a_training_goes_on_where_the_arena_does_not_fit(cupy, monkeypatch, capsys):
    """In one piece there is no room for it; the arrays, one by one, fit."""
    malloc = strict_memory.Pool.malloc

    def limited(self, size):
        if size > 30_000:
            raise MemoryError(f"Out of memory allocating {size:,} bytes (allocated so far: 1,000 bytes).")
        return malloc(self, size)

    before = usual("", monkeypatch)
    monkeypatch.setattr(strict_memory.Pool, "malloc", limited)
    found, weights, arena, _ = trained("--cuda-graph no")
    assert found == before[0] and np.array_equal(weights, before[1]) and arena.given_up
    line = "arena     none: the GPU has no 0.1 MB in one piece for the arrays of a step; they come from CuPy's pool "
    assert capsys.readouterr().out == f"{line}one by one\n"
    found, weights, _, _ = trained("--cuda-graph yes")  # which then has a pool of its own
    assert found == before[0] and np.array_equal(weights, before[1])


def test_a_step_without_memory_is_one_line_that_names_the_plan(cupy, monkeypatch, capsys, tmp_path):
    def exhausted(self, size):
        raise MemoryError(f"Out of memory allocating {size:,} bytes (allocated so far: 1,000 bytes).")

    (tmp_path / "text.txt").write_text("The cat sat on the mat. The dog sat on the cat.\n" * 20)
    monkeypatch.setattr(strict_memory.Pool, "malloc", exhausted)
    argv = f"{FLAGS} --data {tmp_path}/text.txt --run-dir {tmp_path}/run --weights-out {tmp_path}/w --vocab-size 270"
    with running(check=False):
        assert call(lambda: train_gpt2.main(World(), argv.split()), "train_gpt2.py") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train_gpt2.py: out of memory (Out of memory allocating ")
    assert "python -m tinygrad2 plan, with the same flags" in line
