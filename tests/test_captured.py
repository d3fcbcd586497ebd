"""Steps of a training as a CUDA graph, on the stand-in for CuPy: the same bits, by one call."""

import gc
import weakref
from types import SimpleNamespace

import fake_cublaslt
import numpy as np
import pytest
import strict_capture
import strict_cupy
from cuda_host import needs_compiler, running
from test_frozen import Tokens

from tinygrad2.distributed.world import World
from tinygrad2.gpu import uploads
from tinygrad2.precision import computing
from tinygrad2.training.captured import DeviceSteps
from tinygrad2.writes import wrote
from train_gpt2 import Trainer, parse

pytestmark = needs_compiler
FLAGS = ("--device cuda --n-layer 1 --n-embd 16 --n-head 2 --block-size 8 --vocab-size 60 --batch-size 4 "
         "--order sequential --dropout 0").split()  # fmt: skip


@pytest.fixture
def cupy(monkeypatch):
    cupy = strict_cupy.install(monkeypatch)
    fake_cublaslt.install(monkeypatch)  # CuPy's own products cannot be captured
    return cupy


def trained(flags, steps=5, watch=None):
    """(values of each step, weights) of a training by DeviceSteps."""
    config, model_config, _ = parse([*FLAGS, *flags.split()])
    trainer, loader, found = Trainer(config, model_config, World()), Tokens(config), []
    gpu = DeviceSteps(trainer)
    with computing(config):
        for _ in range(steps):
            gpu.note_time(0.0, 1.0)
            found.append(gpu.run(loader, 1e-2, True).get())
            trainer.done, trainer.position = trainer.done + 1, loader.after(trainer.position)
            if watch:
                watch(gpu)
    return found, trainer.flat.data.get()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("more", ["", "--micro-batch-size 1", "--micro-batch-size 2 --recompute --dropout 0.2"])
def test_a_graph_computes_the_same_bits(cupy, more, dtype):
    pytest.importorskip("ml_dtypes")
    recorded, flags = [], f"{more} --dtype {dtype}"
    with running(check=False) as launches:
        usual, weights = trained(f"{flags} --cuda-graph no", watch=lambda g: recorded.append(g.graph is None))
        n_launches = len(launches)
        by_graph, same_weights = trained(f"{flags} --cuda-graph yes", watch=lambda g: recorded.append(g.graph is None))
    assert recorded[:7] == [True] * 5 + [True] * 2 and recorded[8:] == [False] * 2
    assert n_launches > 100 and np.array_equal(usual, by_graph) and np.array_equal(weights, same_weights)
    assert len({tuple(values) for values in usual}) == 5  # other tokens, other losses


@pytest.mark.parametrize("flags", ["", "--micro-batch-size 1", "--dtype bfloat16", "--dropout 0.2"])
def test_a_step_by_a_graph_is_one_launch(cupy, flags):
    """Besides it the batch and the step's numbers are copied to the GPU, and its losses to where the next step leaves
    them. Nothing waits."""
    pytest.importorskip("ml_dtypes")
    counts = []

    def count(gpu):
        counts.append(vars(strict_capture.counts).copy())

    with running(check=False):
        trained(f"{flags} --cuda-graph yes", steps=7, watch=count)
    waits, counts = strict_cupy.sync_count(), counts[-3:]
    differences = [{name: after[name] - before[name] for name in before} for before, after in zip(counts, counts[1:])]
    batches = 4 if "micro" in flags else 1
    assert differences == 2 * [{"graphs": 1, "calls": 1, "uploads": 1 + 2 * batches + ("dropout" in flags)}]
    assert waits == 7 + 1                                         # what `trained` reads: values, and the weights


@pytest.mark.parametrize("dropout", ["0", "0.2"])
def test_a_step_by_a_graph_is_that_of_the_trainer(cupy, dropout):
    """Whose AdamW gets learning rate, step count and factor as arguments, and dropout its keys from the host: the same
    bits, with a gradient clipped."""
    flags = f"--dropout {dropout} --grad-clip 0.1 --micro-batch-size 1 --beta2 0.9 --weight-decay 0.3 --steps 30"
    config, model_config, _ = parse([*FLAGS, *flags.split()])
    trainer, loader = Trainer(config, model_config, World()), Tokens(config)
    trainer.lr = lambda: 1e-2
    with computing(config), running(check=False):
        usual = [trainer.step(loader) for _ in range(5)]
        found, weights = trained(f"{flags} --cuda-graph yes")
    assert [norm for _, norm in usual] == [float(values[-1]) for values in found] and min(usual)[1] > 0.1
    assert np.array_equal(trainer.flat.data.get(), weights)


def test_parameters_that_are_frozen_later_are_recorded_again(cupy):
    def freeze(gpu):
        if gpu.trainer.position == (0, 4):
            gpu.trainer.model.wpe.requires_grad = False
        if gpu.trainer.position == (0, 6):
            gpu.trainer.model.wpe.requires_grad = True

    with running(check=False):
        usual = trained("--cuda-graph no", steps=9, watch=freeze)
        by_graph = trained("--cuda-graph yes", steps=9, watch=freeze)
        assert not np.array_equal(usual[1], trained("--cuda-graph no", steps=9)[1])
    assert np.array_equal(usual[0], by_graph[0]) and np.array_equal(usual[1], by_graph[1])


def test_weights_that_are_changed_between_gpuare_those_of_the_graph(cupy):
    """Their copy in 16 bits as well, which a graph does not cast."""
    pytest.importorskip("ml_dtypes")

    def change(gpu):
        trainer = gpu.trainer
        if trainer.position == (0, 4):
            trainer.flat.data[...] *= 0.5
            wrote(trainer.flat.data)

    with running(check=False):
        usual = trained("--dtype bfloat16 --cuda-graph no", watch=change)
        assert not np.array_equal(usual[0], trained("--dtype bfloat16 --cuda-graph no")[0])
        by_graph = trained("--dtype bfloat16 --cuda-graph yes", watch=change)
    assert np.array_equal(usual[0], by_graph[0]) and np.array_equal(usual[1], by_graph[1])


def test_a_graph_is_recorded_where_the_host_takes_the_time(cupy):
    with running(check=False):
        config, model_config, _ = parse(FLAGS)
        gpu = DeviceSteps(Trainer(config, model_config, World()))
        loader = Tokens(config)
        for starting, expected in ((0.5, True), (0.5, True), (0.5, True), (0.8, True), (0.5, False), (0.1, False)):
            gpu.run(loader, 1e-2, True)
            assert (gpu.graph is None) == expected
            gpu.note_time(starting, 1.0)


def test_the_memory_of_a_graph_stays_as_long_as_the_graph(cupy):
    """Also where the arena has given its block back: nobody else gets it."""
    found = []
    with running(check=False):
        trained("--cuda-graph yes", watch=found.append)
    block = weakref.ref(found[-1].arena.block)
    found[-1].arena.let_go()
    gc.collect()
    assert found[-1].graph and block() is not None


def test_other_shapes_are_recorded_again(cupy):
    with running(check=False):
        config, model_config, _ = parse([*FLAGS, "--cuda-graph", "yes"])
        trainer = Trainer(config, model_config, World())
        gpu, loader, graphs = DeviceSteps(trainer), Tokens(config), []
        gpu.note_time(0.0, 1.0)
        for length in (9, 9, 9, 9, 9, 5, 5):
            class Shorter(Tokens):
                def micro_batches(self, position, rows, length=length):
                    for first, x, y in super().micro_batches(position, rows):
                        yield first, x[:, : length - 1], y[:, : length - 1]

            gpu.run(Shorter(config), 1e-2, True)
            graphs.append(gpu.graph)
    assert graphs[:3] == 3 * [None] and graphs[3] is graphs[4] is not graphs[5] and graphs[5] is graphs[6]
    assert loader.config is config


def test_what_cannot_be_captured_goes_on_as_usual(cupy, monkeypatch, capsys):
    config, model_config, _ = parse([*FLAGS, "--cuda-graph", "yes"])
    trainer = Trainer(config, model_config, World())
    micro_step = trainer.micro_step
    monkeypatch.setattr(trainer, "micro_step", lambda *args: (micro_step(*args), float(trainer.flat.data[0]))[0])
    gpu = DeviceSteps(trainer)
    gpu.note_time(0.0, 1.0)
    with running(check=False):
        for _ in range(2):
            gpu.run(Tokens(config), 0.0, True)
        gpu.run(Tokens(config), 0.0, True)
        gpu.note_time(0.0, 1.0)
        values = [gpu.run(Tokens(config), 0.0, True).get() for _ in range(2)]
    assert gpu.graph is None and np.array_equal(*values)
    note = "note      no CUDA graph: float(x) is not permitted while a stream is capturing"
    assert capsys.readouterr().out.splitlines().count(note) == 1


# -- copies to the GPU -------------------------------------------------------------------------------------------------


class Slow:
    """A GPU that does what is on its stream when it is told to, as far as Uploads sees it: then a copy reads the host's
    memory, and an event is done. `waits` counts how often the host waited."""

    def __init__(self):
        self.queue, self.waits = [], 0
        self.cuda = SimpleNamespace(Event=self.event, get_current_stream=lambda: "stream")

    def work(self, n):
        for _ in range(n):
            self.queue.pop(0)()

    def event(self):
        event = SimpleNamespace(done=True)

        def record(stream):
            event.done = False
            self.queue.append(lambda: setattr(event, "done", True))

        def synchronize():
            self.waits += 1
            while not event.done:
                self.work(1)

        event.record, event.synchronize = record, synchronize
        return event

    def place(self, shape, dtype):
        found = np.zeros(shape, dtype)

        def set(part, stream):
            assert stream == "stream" and (part.shape, part.dtype) == (found.shape, found.dtype)
            self.queue.append(lambda: found.__setitem__(..., part))

        return found, SimpleNamespace(shape=shape, dtype=np.dtype(dtype), nbytes=found.nbytes, set=set)


def test_memory_is_not_overwritten_while_a_gpu_may_read_it(monkeypatch):
    gpu, made = Slow(), []
    monkeypatch.setattr(uploads, "pinned_empty", lambda *args: made.append(args) or np.empty(*args))
    upload = uploads.Uploads(gpu)
    (ids, ids_place), (numbers, numbers_place) = gpu.place((2, 3), np.int64), gpu.place((5,), np.float32)
    given = np.zeros((2, 3), np.int64)
    for n in range(1, 5):
        given[...] = n
        upload.start([(given, ids_place), (np.full(5, n / 2), numbers_place)])
        assert gpu.waits == max(0, n - 2) and (upload.waited > 0) == (n > 2)     # for the copies before the last ones
        assert (ids == max(0, n - 2)).all() and (numbers == max(0, n - 2) / 2).all()
    given[...] = 0
    gpu.work(3)
    assert (ids == 3).all() and (numbers == 1.5).all()
    gpu.work(3)
    assert (ids == 4).all() and (numbers == 2).all() and not gpu.queue
    upload.start([(given, ids_place)])
    assert gpu.waits == 2
    larger, larger_place = gpu.place((400,), np.float64)
    upload.start([(np.arange(400), larger_place)])
    gpu.work(4)
    assert (larger == np.arange(400)).all() and not ids.any()
    assert made == [(80, np.uint8), (80, np.uint8), (3200, np.uint8)]             # multiples of 16 bytes for each array
