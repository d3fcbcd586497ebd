"""Steps that do not wait for the GPU, on the stand-in for CuPy: where one goes wrong, the training is where it was
before it, and nothing that was started is lost."""

import math
from types import SimpleNamespace

import fake_cublaslt
import numpy as np
import pytest
import strict_cupy
from cuda_host import needs_compiler, running
from test_frozen import Tokens

from tinygrad2.datasets.token_files import ChangedData
from tinygrad2.distributed.world import World
from tinygrad2.errors import UserError
from tinygrad2.precision import computing
from tinygrad2.training.lookahead import Lookahead
from train_gpt2 import Trainer, main, parse

pytestmark = needs_compiler
FLAGS = "--device cuda --n-layer 1 --n-embd 16 --n-head 2 --block-size 8 --vocab-size 60 --batch-size 4 --steps 9"


@pytest.fixture
def cupy(monkeypatch):
    cupy = strict_cupy.install(monkeypatch)
    fake_cublaslt.install(monkeypatch)
    return cupy


def make_trainer(flags):
    config, model_config, _ = parse(f"{FLAGS} {flags}".split())
    return Trainer(config, model_config, World())


def run(trainer, reads, loader=None, before=None):
    """The Steps of a training that is read after these steps. before(number of the step) is called before each."""
    lookahead, loader, found = Lookahead(trainer), loader or Tokens(trainer.config), []
    with computing(trainer.config), running(check=False), np.errstate(invalid="ignore"):  # a GPU does not warn
        for number in range(1, max(reads) + 1):
            if before:
                before(number)
            found += lookahead.step(loader, read=number in reads)
    return found


def spoilable(trainer, monkeypatch):
    """(a number on the GPU that is added to each loss, one that is added to an element of the gradient), now 0: what a
    graph reads there is what is there when it is launched."""
    cupy = strict_cupy.cupy
    of_loss, of_gradient = (cupy.zeros(1, np.float32) for _ in range(2))
    micro_step, finish = trainer.micro_step, trainer.reducer.finish

    def spoilt():
        finish()
        trainer.flat.grad_buffer[7:8] += of_gradient

    monkeypatch.setattr(trainer, "micro_step", lambda *args, **known: micro_step(*args, **known) + of_loss[0])
    monkeypatch.setattr(trainer.reducer, "finish", spoilt)
    return of_loss, of_gradient


def state_of(trainer):
    optimizer = trainer.optimizer
    arrays = [array.get().tobytes() for array in (trainer.flat.data, optimizer.m, optimizer.v)]
    return trainer.done, trainer.position, optimizer.t, optimizer.missed, *arrays


@pytest.mark.parametrize("flags", ["", "--dtype bfloat16", "--micro-batch-size 2 --recompute", "--cuda-graph yes",
                                   "--grad-clip 0"])  # fmt: skip
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(cupy, monkeypatch, where, value, flags):
    """Nor do those that were started behind it."""
    pytest.importorskip("ml_dtypes")
    good, bad = make_trainer(flags), make_trainer(flags)
    for trainer in (good, bad):
        spoilers = dict(zip(("loss", "gradient"), spoilable(trainer, monkeypatch)))

    def spoil(number):
        spoilers[where][...] = value if number == 4 else 0

    assert [step.done for step in run(good, (1, 3))] == [1, 2, 3]
    steps = run(bad, (1, 6), before=spoil)
    assert [step.done for step in steps] == [1, 2, 3, 4]
    assert all(math.isfinite(step.loss + step.norm) for step in steps[:3])
    assert not math.isfinite(steps[3].loss + steps[3].norm)
    assert state_of(bad) == state_of(good)


def test_steps_that_compile_do_not_decide_about_a_graph(cupy, monkeypatch):
    """The host takes 100 seconds for each of the first two, and one for the others, of which the GPU takes five."""
    now, noted = [0.0], []
    monkeypatch.setattr("tinygrad2.training.lookahead.time.perf_counter", lambda: now[0])
    trainer = make_trainer("")
    lookahead, loader = Lookahead(trainer), Tokens(trainer.config)
    computed, read = lookahead.steps.run, lookahead._read
    monkeypatch.setattr(lookahead.steps, "note_time", lambda *times: noted.append(times))

    def slow(*args, **kwargs):
        now[0] += 100.0 if trainer.done < 2 else 1.0
        return computed(*args, **kwargs)

    def waiting():
        now[0] += 8.0
        return read()

    lookahead.steps.run, lookahead._read = slow, waiting
    with computing(trainer.config), running(check=False):
        found = [len(lookahead.step(loader, read=number in (1, 4, 6))) for number in range(1, 7)]
    assert found == [1, 0, 0, 3, 0, 2] and noted == [(2.0, 10.0), (2.0, 10.0)]
    assert lookahead.steps.graph is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_frozen_parameters_stay_as_they_are_in_a_graph(cupy, dtype):
    pytest.importorskip("ml_dtypes")
    states = []
    for graph in ("no", "yes"):
        trainer = make_trainer(f"--cuda-graph {graph} --dtype {dtype}")
        trainer.model.h[0].attn.requires_grad = trainer.model.wpe.requires_grad = False
        before = {name: p.data.get() for name, p in trainer.model.named_parameters()}
        run(trainer, (1, 4, 6))
        for name, parameter in trainer.model.named_parameters():
            frozen = ".attn." in name or name.startswith("wpe")
            assert np.array_equal(before[name], parameter.data.get()) == frozen, name
        states.append(state_of(trainer))
    assert states[0] == states[1]


@pytest.mark.parametrize("graph", ["no", "yes"])
def test_updates_that_the_gpu_has_left_out_do_not_count(cupy, monkeypatch, graph):
    """With --dtype float16, also those of parameters that are frozen for a while: Adam's t is their own."""
    states = []
    for flags in ("--read-every 1", f"--cuda-graph {graph}"):
        trainer = make_trainer(f"--dtype float16 {flags}")
        _, of_gradient = spoilable(trainer, monkeypatch)

        def prepare(number, trainer=trainer, spoiler=of_gradient):
            spoiler[...] = math.inf if number in (2, 3, 7) else 0
            trainer.model.wpe.requires_grad = number > 5

        steps = run(trainer, range(1, 10) if "every" in flags else (1, 5, 9), before=prepare)
        assert [bool(step.overflow) for step in steps] == [number in (2, 3, 7) for number in range(1, 10)]
        states.append((*state_of(trainer), trainer.loss_scale.state_dict()))
    assert states[0] == states[1] and states[0][2:4] == (6, {"wpe.weight": 3})


def test_after_a_step_that_is_not_finite_the_training_can_go_on(cupy, monkeypatch):
    good, bad = make_trainer("--cuda-graph yes"), make_trainer("--cuda-graph yes")
    of_loss, _ = spoilable(bad, monkeypatch)

    def spoil(number):
        of_loss[...] = math.nan if number == 4 else 0

    assert [step.done for step in run(bad, (6, 9), before=spoil)] == [1, 2, 3, 4, 4, 5, 6]
    run(good, (6,))
    assert state_of(bad) == state_of(good)


def test_a_host_that_is_ahead_of_the_gpu_is_not_taken_for_a_slow_one(cupy, monkeypatch):
    """A graph pays where the host takes long to start a step. Time in which it waits until a buffer is free, since the
    GPU is two steps behind, says the opposite."""
    trainer, found = make_trainer(""), []
    lookahead = Lookahead(trainer)
    start = lookahead.steps.uploads.start

    def waiting(pairs):
        lookahead.steps.uploads.waited += 1000.0
        start(pairs)

    monkeypatch.setattr(lookahead.steps.uploads, "start", waiting)
    monkeypatch.setattr(lookahead.steps, "is_usual", lambda: True)
    monkeypatch.setattr(lookahead.steps, "note_time", lambda *seconds: found.append(seconds))
    with computing(trainer.config), running(check=False):
        lookahead.step(Tokens(trainer.config), read=True)
    ((starting, seconds),) = found
    assert -1000 < starting < seconds - 1000


def test_a_step_waits_for_what_was_started_on_the_callers_stream(cupy, monkeypatch):
    """Steps that may be graphs have a stream of their own, which waits for no other one by itself."""
    waited, started = [], iter(range(9))
    monkeypatch.setattr(cupy.cuda.Stream, "record", lambda stream: next(started))
    monkeypatch.setattr(cupy.cuda.Stream, "wait_event", lambda stream, event: waited.append(event))
    for flags, expected in (("", [0, 1]), ("--cuda-graph no", [])):
        trainer = make_trainer(flags)
        lookahead = Lookahead(trainer)
        with computing(trainer.config), running(check=False):
            for _ in range(2):
                lookahead.step(Tokens(trainer.config), read=False)
        assert waited == expected
        waited.clear()


def test_steps_before_data_that_have_changed_are_returned_first(cupy):
    """Then the state can be saved: all of its steps have been recorded."""

    class Changing(Tokens):
        def micro_batches(self, position, rows):
            if position == (0, 3):
                raise ChangedData("changed")
            return super().micro_batches(position, rows)

    trainer = make_trainer("")
    lookahead, loader = Lookahead(trainer), Changing(trainer.config)
    with computing(trainer.config), running(check=False):
        found = [len(lookahead.step(loader, read=False)) for _ in range(4)]
        with pytest.raises(ChangedData):
            lookahead.step(loader, read=False)
    assert found == [0, 0, 0, 3] and trainer.done == 3


def test_a_signal_ends_the_training_after_the_step_and_not_when_the_losses_are_due(cupy):
    trainer = make_trainer("")
    trainer.stop = SimpleNamespace(signal=0)
    lookahead, loader = Lookahead(trainer), Tokens(trainer.config)
    with computing(trainer.config), running(check=False):
        assert lookahead.step(loader, read=False) == [] and not trainer.finished
        trainer.stop.signal = 15
        assert len(lookahead.step(loader, read=False)) == 2 and trainer.finished and trainer.stopping == 15


@pytest.mark.parametrize("flags, reason", [
    ("--read-every 1", "with --read-every 1 each"),
    ("--skip-outliers", "with --skip-outliers each"),
    ("--kernels reference", "with --kernels reference each"),
    ("--device cpu", "it is for --device cuda"),
])  # fmt: skip
def test_a_graph_that_is_asked_for_and_cannot_be_is_refused(cupy, flags, reason):
    with pytest.raises(UserError, match=f"^--cuda-graph yes: {reason}.*; use --cuda-graph auto$"):
        Lookahead(make_trainer(f"{flags} --cuda-graph yes"))
    Lookahead(make_trainer(flags))


def test_a_graph_is_refused_before_an_earlier_run_is_moved_aside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 100)
    flags = "--data text.txt --n-layer 1 --n-embd 8 --n-head 1 --block-size 8 --vocab-size 257 --steps 1"
    assert main(World(), flags.split()) == 0
    files = sorted(tmp_path.rglob("*"))
    for flag, reason in ("--cuda-graph", "it is for --device cuda"), ("--tune-products", "it is for the kernels of"):
        with pytest.raises(UserError, match=f"^{flag} yes: {reason}"):
            main(World(), ["--data", "missing.txt", flag, "yes"])          # before the data are read
    assert sorted(tmp_path.rglob("*")) == files
