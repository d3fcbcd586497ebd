"""Forward and backward of a training's steps as a CUDA graph, on the stand-in for CuPy: the same bits, by one call."""

import fake_cublaslt
import numpy as np
import pytest
import strict_cupy
from cuda_host import needs_compiler, running
from test_frozen import Tokens

from models import GPTConfig
from tinygrad2.distributed.world import World
from tinygrad2.errors import UserError
from tinygrad2.precision import computing
from tinygrad2.training.captured import Gradients
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
    """(values of each step, weights) of a training by Gradients and Adam."""
    config, model_config, _ = parse([*FLAGS, *flags.split()])
    trainer, loader, found = Trainer(config, model_config, World()), Tokens(config), []
    gradients = Gradients(trainer)
    with computing(config):
        for _ in range(steps):
            gradients.note_time(0.0, 1.0)
            found.append(gradients.run(loader).get())
            trainer.optimizer.step(1e-2, 0.5)
            trainer.position = loader.after(trainer.position)
            if watch:
                watch(gradients)
    return found, trainer.flat.data.get()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("more", ["", "--micro-batch-size 1", "--micro-batch-size 2 --recompute"])
def test_a_graph_computes_the_same_bits(cupy, more, dtype):
    pytest.importorskip("ml_dtypes")
    recorded, flags = [], f"{more} --dtype {dtype}"
    with running(check=False) as launches:
        usual, weights = trained(f"{flags} --cuda-graph no", watch=lambda g: recorded.append(g.graph is None))
        n_launches = len(launches)
        by_graph, same_weights = trained(f"{flags} --cuda-graph yes", watch=lambda g: recorded.append(g.graph is None))
    assert recorded == [True] * 5 + [True] * 2 + [False] * 3
    assert n_launches > 100 and np.array_equal(usual, by_graph) and np.array_equal(weights, same_weights)
    assert len({tuple(values) for values in usual}) == 5  # other tokens, other losses


def test_weights_that_are_changed_between_steps_are_those_of_the_graph(cupy):
    """Their copy in 16 bits as well, which a graph does not cast."""
    pytest.importorskip("ml_dtypes")

    def change(gradients):
        trainer = gradients.trainer
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
        gradients = Gradients(Trainer(config, model_config, World()))
        loader = Tokens(config)
        for starting, expected in ((0.5, True), (0.5, True), (0.5, True), (0.8, True), (0.5, False), (0.1, False)):
            gradients.run(loader)
            assert (gradients.graph is None) == expected
            gradients.note_time(starting, 1.0)


def test_other_shapes_are_recorded_again(cupy):
    with running(check=False):
        config, model_config, _ = parse([*FLAGS, "--cuda-graph", "yes"])
        trainer = Trainer(config, model_config, World())
        gradients, loader, graphs = Gradients(trainer), Tokens(config), []
        gradients.note_time(0.0, 1.0)
        for length in (9, 9, 9, 9, 5, 5):
            class Shorter(Tokens):
                def micro_batches(self, position, rows, length=length):
                    for first, x, y in super().micro_batches(position, rows):
                        yield first, x[:, : length - 1], y[:, : length - 1]

            gradients.run(Shorter(config))
            graphs.append(gradients.graph)
    assert graphs[:2] == [None, None] and graphs[2] is graphs[3] is not graphs[4] and graphs[4] is graphs[5]
    assert loader.config is config


def test_dropout_cannot_be_captured(cupy):
    config, model_config, _ = parse([*FLAGS[:-1], "0.1", "--cuda-graph", "yes"])
    assert isinstance(model_config, GPTConfig)
    with pytest.raises(UserError, match="--cuda-graph yes: the masks of dropout"):
        Gradients(Trainer(config, model_config, World()))
    config, model_config, _ = parse([*FLAGS[:-1], "0.1"])
    assert not Gradients(Trainer(config, model_config, World())).permitted


def test_what_cannot_be_captured_goes_on_as_usual(cupy, monkeypatch, capsys):
    config, model_config, _ = parse([*FLAGS, "--cuda-graph", "yes"])
    trainer = Trainer(config, model_config, World())
    micro_step = trainer.micro_step
    monkeypatch.setattr(trainer, "micro_step", lambda *args: (micro_step(*args), float(trainer.flat.data[0]))[0])
    gradients = Gradients(trainer)
    gradients.note_time(0.0, 1.0)
    with running(check=False):
        for _ in range(2):
            gradients.run(Tokens(config))
        gradients.run(Tokens(config))
        gradients.note_time(0.0, 1.0)
        values = [gradients.run(Tokens(config)).get() for _ in range(2)]
    assert gradients.graph is None and np.array_equal(*values)
    note = "note      no CUDA graph: float(x) is not permitted while a stream is capturing"
    assert capsys.readouterr().out.splitlines().count(note) == 1
