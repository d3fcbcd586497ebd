"""Frozen parameters: `requires_grad = False` on any of them, at any time. They get no gradient and keep their bits, and
the others are trained as if they were constants."""

import contextlib
import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import strict_cupy

import ops
from models import GPT, GPTConfig
from models.dropout import set_dropout
from tinygrad2 import Module, Parameter, Tensor, gradcheck
from tinygrad2.backend import to_host
from tinygrad2.commands import replay
from tinygrad2.dispatch import kernels
from tinygrad2.distributed.world import World
from tinygrad2.errors import UserError
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.function import observe
from tinygrad2.io.files import write_json
from tinygrad2.monitor.dump import raise_nonfinite
from tinygrad2.optim import Adam, clip_scale, grad_norm
from tinygrad2.training.checkpoint import read_checkpoint, write_checkpoint
from tinygrad2.training.run_state import RunState
from tinygrad2.training.snapshot import restore, snapshot, synchronize
from train_gpt2 import Trainer, parse

ROOT = Path(__file__).parents[1]
SHAPE = dict(vocab_size=60, block_size=8, n_layer=2, n_head=2, n_embd=8)
NAMES = [name for name, _ in GPT(GPTConfig(**SHAPE)).named_parameters()]
SUBSETS = {
    "none": lambda name: False,
    "all but one": lambda name: name != "h.1.attn.c_attn.weight",
    "all but one bias": lambda name: name != "h.0.mlp.c_fc.bias",
    "embeddings": lambda name: name.startswith(("wte", "wpe")),
    "tied embedding": lambda name: name == "wte.weight",
    "first block and below": lambda name: name.startswith(("wte", "wpe", "h.0")),
    "last block": lambda name: name.startswith("h.1"),
    "matrices": lambda name: name.endswith("weight") and "ln" not in name,
    "vectors": lambda name: name.endswith("bias") or "ln" in name,
    "every other": lambda name: NAMES.index(name) % 2 == 0 if name in NAMES else False,
}


def batches(count, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        batch = rng.integers(0, SHAPE["vocab_size"], (2, SHAPE["block_size"] + 1))
        yield batch[:, :-1], batch[:, 1:]


def freeze(model, frozen):
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not frozen(name)


def gradients_of_all(model, x, y):
    """{name: gradient} with nothing frozen, from a copy of the model: what those that are trained must get."""
    twin = GPT(model.config, seed=0)
    twin.load_state_dict(model.state_dict())
    set_dropout(twin, 1, 2)
    twin.loss(x, y).backward()
    return {name: parameter.grad for name, parameter in twin.named_parameters()}


@pytest.mark.parametrize("mode", ["auto", "reference"])
@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
@pytest.mark.parametrize("config", [{}, {"tied_head": False, "dropout": 0.2}], ids=["tied", "untied, dropout"])
@pytest.mark.parametrize("subset", SUBSETS)
def test_the_others_get_the_same_gradients(subset, config, recompute, mode):
    model = GPT(GPTConfig(**SHAPE, **config), seed=1, recompute=recompute)
    freeze(model, SUBSETS[subset])
    flat = FlatBuffers(model)
    with kernels(mode):
        for x, y in batches(2):
            flat.zero_grad()
            set_dropout(model, 1, 2)
            model.loss(x, y).backward()
            expected = gradients_of_all(model, x, y)
            views = flat.named_views(flat.grad)
            for name, parameter in model.named_parameters():
                if SUBSETS[subset](name):
                    assert parameter.grad is None and not views[name].any()
                else:
                    assert parameter.grad.tobytes() == expected[name].tobytes() == views[name].tobytes(), name


def numpy_adam(weights, gradients, moments, counts, lr, betas=(0.9, 0.999), eps=1e-8, decay=0.1):
    """One step on those that have a gradient, parameter by parameter in float64."""
    for name, g in gradients.items():
        counts[name] = t = counts.get(name, 0) + 1
        m, v = moments.setdefault(name, [np.zeros(g.shape), np.zeros(g.shape)])
        m[...] = betas[0] * m + (1 - betas[0]) * g
        v[...] = betas[1] * v + (1 - betas[1]) * g * g
        step = m / (1 - betas[0] ** t) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
        weights[name] = weights[name] - lr * (step + decay * weights[name] * (g.ndim >= 2))


def test_an_optimizer_leaves_frozen_parameters_alone_whenever_they_are_frozen():
    """Frozen before the optimizer is made, after it, for some steps, in turns: as Adam that has the others only."""
    model = GPT(GPTConfig(**SHAPE), seed=1)
    model.wpe.requires_grad = False
    flat = FlatBuffers(model)
    optimizer = Adam(flat, weight_decay=0.1)
    model.h[0].attn.requires_grad = False
    weights = {name: array.astype(np.float64) for name, array in model.state_dict().items()}
    moments, counts = {}, {}
    for step, (x, y) in enumerate(batches(12)):
        if step in (3, 9):
            model.wte.requires_grad = False
        if step == 5:
            model.h[0].requires_grad = True
            model.wte.requires_grad = True
        if step == 7:
            model.h[1].mlp.c_fc.bias.requires_grad = model.ln_f.requires_grad = False
        before = model.state_dict()
        flat.zero_grad()
        model.loss(x, y).backward()
        gradients = {name: p.grad.astype(np.float64) for name, p in model.named_parameters() if p.requires_grad}
        norm = grad_norm(flat.grad)
        assert norm == pytest.approx(math.sqrt(sum((g * g).sum() for g in gradients.values())), rel=1e-5)
        scale = float(clip_scale(norm, 0.5))
        optimizer.step(1e-2, scale)
        numpy_adam(weights, {name: scale * g for name, g in gradients.items()}, moments, counts, 1e-2)
        for name, parameter in model.named_parameters():
            if name not in gradients:
                assert parameter.data.tobytes() == before[name].tobytes()
            np.testing.assert_allclose(parameter.data, weights[name], rtol=2e-4, atol=2e-5, err_msg=f"{step} {name}")
    for array in (optimizer.m, optimizer.v):
        assert not flat.named_views(array)["wpe.weight"].any()
    assert optimizer.missed["wpe.weight"] == 12 and counts["wte.weight"] == 7 == 12 - optimizer.missed["wte.weight"]


def test_as_torch_does():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start = [rng.standard_normal((5, 4)).astype(np.float32), rng.standard_normal((4, 3)).astype(np.float32)]

    class Two(Module):
        def __init__(self):
            self.a, self.b = map(Parameter, start)

    model, theirs = Two(), [torch.nn.Parameter(torch.tensor(array)) for array in start]
    optimizer = Adam(FlatBuffers(model), weight_decay=0.1)
    other = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1)
    x = rng.standard_normal((6, 5)).astype(np.float32)
    for step in range(10):
        wanted = step not in (2, 3, 4, 8)
        model.b.requires_grad = wanted
        theirs[1].requires_grad_(wanted)
        other.zero_grad(set_to_none=True)
        model.zero_grad()
        ((Tensor(x) @ model.a @ model.b) ** 2).mean().backward()
        ((torch.tensor(x) @ theirs[0] @ theirs[1]) ** 2).mean().backward()
        optimizer.step(0.01)
        other.step()
        for ours, their in zip((model.a, model.b), theirs):
            np.testing.assert_allclose(ours.data, their.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_what_was_there_before_is_no_gradient():
    parameter = Parameter(np.ones(3, np.float32))
    (parameter * 2.0).sum().backward()
    parameter.requires_grad = False
    assert parameter.grad is None and not (parameter * 2.0).requires_grad
    parameter.requires_grad = True
    assert parameter.grad.tolist() == [0, 0, 0]
    (parameter * 2.0).sum().backward()
    assert parameter.grad.tolist() == [2, 2, 2]
    loss = (parameter * 3.0).sum()
    parameter.requires_grad = False  # between forward and backward
    loss.backward()
    parameter.requires_grad = True
    assert parameter.grad.tolist() == [0, 0, 0]
    parameter.zero_grad()
    (parameter * 2.0).sum().backward()
    assert parameter.grad.tolist() == [2, 2, 2]
    assert not Parameter([1.0], requires_grad=False).requires_grad
    with pytest.raises(TypeError, match="int64 Parameter cannot require a gradient"):
        Parameter(np.arange(3), requires_grad=False).requires_grad = True


def test_gradients_of_earlier_steps_do_not_enter_sums_and_norms():
    """Buffers of micro-batches still hold the gradients of a parameter that has been frozen meanwhile."""
    trainer = make_trainer("--batch-size 8 --micro-batch-size 1")
    run(trainer, 2)
    trainer.model.wte.requires_grad = False
    trainer.model.h[0].requires_grad = False
    for _ in range(2):
        run(trainer, 1)
        views = trainer.flat.named_views(trainer.flat.grad)
        frozen = [views[name] for name in trainer.flat.frozen]
        assert len(frozen) == 13 and not any(view.any() for view in frozen)
        own = [views[name].astype(float) for name in views if name not in trainer.flat.frozen]
        assert float(trainer.reducer.grad_norm()) == pytest.approx(math.sqrt(sum((g * g).sum() for g in own)), rel=1e-5)
    trainer.model.requires_grad = True
    run(trainer, 1)
    assert all(parameter.grad.any() for parameter in trainer.flat.parameters if parameter.size > 8)


def test_parts_of_the_buffers():
    model = GPT(GPTConfig(**SHAPE), seed=1)
    flat = FlatBuffers(model)
    assert flat.trainable(slice(5, 70)) == [slice(5, 70)]
    model.wte.requires_grad = False
    first = list(flat.slices)[1]
    assert flat.trainable(slice(0, flat.size)) == [slice(flat.slices[first].start, flat.size)]
    model.requires_grad = False
    assert flat.trainable(slice(0, flat.size)) == [] and not model.requires_grad
    model.h[1].ln_1.bias.requires_grad = True
    own = flat.slices["h.1.ln_1.bias"]
    assert flat.trainable(slice(0, own.start + 3)) == [slice(own.start, own.start + 3)]
    assert model.requires_grad and model.h[1].requires_grad and not model.h[0].requires_grad
    assert model.count_parameters(trainable_only=True) == 8 and model.count_parameters() > 1000
    flat.freeze(["wte.weight"])
    assert flat.frozen == ["wte.weight"]
    with pytest.raises(ValueError, match="h.7.weight: no parameter of this model has that name"):
        flat.freeze(["h.7.weight"])


def test_nothing_trainable_is_an_error():
    trainer = make_trainer()
    before = trainer.flat.data.copy()
    trainer.model.requires_grad = False
    for call in (lambda: run(trainer, 1), lambda: trainer.optimizer.step(1e-3)):
        with pytest.raises(UserError, match=r"^nothing to train: all 28 parameters of the model are frozen \(requires"):
            call()
    x, y = next(batches(1))
    with pytest.raises(RuntimeError, match="are all parameters frozen"):
        trainer.model.loss(x, y).backward()
    assert trainer.optimizer.t == trainer.done == 0 and trainer.flat.data.tobytes() == before.tobytes()


def test_frozen_parameters_take_no_memory_for_moments_and_gradients():
    """Of m, v and the gradient only zeros that nobody wrote: the system has given no memory for them."""
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import numpy as np, ops
from tinygrad2 import Module, Parameter
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.optim import Adam, grad_norm
from tinygrad2.system.memory import resident_bytes
class Pair(Module):
    def __init__(self, n):
        self.a, self.b = Parameter(np.ones((n, n), np.float32)), Parameter(np.ones((4, 4), np.float32))
def train(n):
    model = Pair(n)
    flat = FlatBuffers(model)
    model.a.requires_grad = False
    optimizer, before = Adam(flat, weight_decay=0.1), resident_bytes()
    for _ in range(3):
        flat.zero_grad()
        (model.b * model.b).sum().backward()
        grad_norm(flat.grad)
        optimizer.step(0.1)
    return before, resident_bytes()
train(4)  # loads the kernels
print(*train(4000))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    before, after = map(int, result.stdout.split())
    assert before == 0 or after - before < 20e6, result.stderr  # one of the three would be 64 MB


def test_gradcheck_passes_frozen_parameters_on():
    frozen, trained = Parameter(np.ones((3, 2)), requires_grad=False), Parameter(np.full((3, 2), 2.0))
    report = gradcheck(lambda a, b: (a * b).exp(), [frozen, trained])
    assert report and [entry.number for entry in report.inputs] == [1]
    nothing = gradcheck(lambda a: a * 1.0, [frozen])
    assert not nothing and "nothing was checked" in str(nothing)

    def with_a_frozen_weight(x):
        return ops.linear(x, Parameter(np.ones((2, 4)), requires_grad=False))

    assert gradcheck(with_a_frozen_weight, [np.ones((3, 2))])


def test_a_frozen_part_is_not_recorded():
    """Below the lowest parameter that is trained nothing is kept for backward."""

    class Counter:
        kept = 0

        def inside(self, module):
            return contextlib.nullcontext()

        def before(self, node):
            pass

        def after_forward(self, node, arrays, results):
            self.kept += bool(node.saved)

    def kept(frozen):
        model, counter = GPT(GPTConfig(**SHAPE), seed=1), Counter()
        freeze(model, frozen)
        with observe(counter):
            model.loss(*next(batches(1)))
        return counter.kept

    assert kept(SUBSETS["first block and below"]) < kept(SUBSETS["none"]) / 1.5
    assert kept(lambda name: True) == 0


# -- trainer -----------------------------------------------------------------------------------------------------------

FLAGS = "--n-layer 2 --n-head 2 --n-embd 8 --block-size 8 --vocab-size 60 --steps 12 --batch-size 4"


class Tokens:
    """A DataLoader's part that a Trainer needs: random rows, a function of the position."""

    def __init__(self, config):
        self.config = config

    def micro_batches(self, position, rows):
        rng = np.random.default_rng(position)
        for first in range(0, self.config.batch_size, rows):
            batch = rng.integers(0, 60, (rows, 9))
            yield first, batch[:, :-1], batch[:, 1:]

    def after(self, position):
        return position[0], position[1] + 1


def make_trainer(flags="", **changes):
    config, gpt_config, _ = parse([*FLAGS.split(), *flags.split()])
    return Trainer(config, gpt_config, World())


def run(trainer, steps):
    loader = Tokens(trainer.config)
    return [trainer.step(loader) for _ in range(steps)]


TOGGLES = {2: ("wte", False), 4: ("h.0", False), 6: ("wte", True), 7: ("h.1.ln_1", False), 9: ("h.0", True)}


def run_with_toggles(trainer, until):
    losses = []
    while trainer.done < until:
        if trainer.done in TOGGLES:
            prefix, value = TOGGLES[trainer.done]
            for name, parameter in trainer.model.named_parameters():
                if name.startswith(prefix):
                    parameter.requires_grad = value
        losses += run(trainer, 1)
    return losses


@pytest.mark.parametrize("stop", [1, 3, 5, 8, 11])
@pytest.mark.parametrize("flags", ["", "--batch-size 8 --micro-batch-size 2 --recompute"], ids=["", "tree, recompute"])
def test_a_resumed_training_has_the_same_bits(tmp_path, stop, flags):
    straight = make_trainer(flags)
    losses = run_with_toggles(straight, 12)

    first = make_trainer(flags)
    before = run_with_toggles(first, stop)
    state = RunState("demo", training=asdict(first.config), model=first.model.config.to_dict())
    path = write_checkpoint(str(tmp_path), snapshot(first, state))
    second, checkpoint = make_trainer(flags), read_checkpoint(path)
    restore(second, checkpoint)
    synchronize(second, checkpoint)
    assert second.flat.frozen == first.flat.frozen and second.optimizer.missed == first.optimizer.missed
    assert before + run_with_toggles(second, 12) == losses
    for ours, theirs in ((straight.flat.data, second.flat.data), (straight.optimizer.m, second.optimizer.m)):
        assert ours.tobytes() == theirs.tobytes()


def test_a_checkpoint_without_frozen_parameters_has_no_field_for_them(tmp_path):
    trainer = make_trainer()
    run(trainer, 1)
    state = RunState("demo", training=asdict(trainer.config), model=trainer.model.config.to_dict())
    path = write_checkpoint(str(tmp_path), snapshot(trainer, state))
    assert b"missed" not in (Path(path) / "optimizer.bin").read_bytes()
    other = make_trainer()
    other.model.wpe.requires_grad = False  # as a script does that finetunes what another one has trained
    restore(other, read_checkpoint(path))
    assert other.flat.frozen == ["wpe.weight"]


@pytest.mark.parametrize("flags", ["", "--batch-size 8 --micro-batch-size 2 --recompute"], ids=["", "tree, recompute"])
def test_on_a_gpu(monkeypatch, flags):
    """On the stand-in for CuPy: the bits of the reference implementations on the CPU."""
    strict_cupy.install(monkeypatch)
    with kernels("reference"):
        trainers = [make_trainer(f"{flags} --device {device}") for device in ("cpu", "cuda")]
        assert run_with_toggles(trainers[0], 12) == run_with_toggles(trainers[1], 12)
    assert to_host(trainers[1].flat.data).tobytes() == trainers[0].flat.data.tobytes()
    assert trainers[0].flat.frozen == trainers[1].flat.frozen == ["h.1.ln_1.weight", "h.1.ln_1.bias"]


def test_recompute_trains_what_follows_frozen_embeddings():
    """Nothing that enters the first block wants a gradient, but its parameters do."""
    losses = {}
    for flags in ("", "--recompute"):
        trainer = make_trainer(flags)
        trainer.model.wte.requires_grad = trainer.model.wpe.requires_grad = False
        losses[flags] = run(trainer, 4), trainer.flat.data.tobytes()
    assert losses[""] == losses["--recompute"]


# -- dumps and damage --------------------------------------------------------------------------------------------------


def test_a_dump_records_what_is_frozen_and_replay_freezes_it(tmp_path, capsys):
    """A gradient that overflows counts only if it is computed: that of a frozen parameter is not."""
    trainer = make_trainer()
    trainer.model.requires_grad = False
    trainer.model.ln_f.requires_grad = trainer.model.h[0].mlp.c_proj.requires_grad = True
    huge = trainer.model.h[0].mlp
    huge.c_fc.weight.data *= np.float32(1e12)
    huge.c_proj.weight.data *= np.float32(1e-12)
    trainer.model.ln_f.weight.data *= np.float32(1e32)
    loader = Tokens(trainer.config)
    loss, norm = trainer.step(loader)
    with pytest.raises(UserError, match="It began in the backward of mlp in h.0.mlp: gradient of weight2"):
        raise_nonfinite(trainer, loader, loss, norm, str(tmp_path), None, lambda line: None)
    path = tmp_path / "nonfinite_step_00000001"
    dump = json.loads((path / "dump.json").read_text())
    assert dump["frozen"] == trainer.flat.frozen and len(dump["frozen"]) == 24
    assert replay.main([str(path)]) == 0 and "the same as then" in capsys.readouterr().out
    for frozen, says in ((trainer.flat.frozen + ["h.0.mlp.c_proj.weight"], "all values are finite"),
                         (["h.9"], None), ([3], None), ("wte", None)):  # fmt: skip
        write_json(str(path / "dump.json"), dump | {"frozen": frozen})
        if says:
            assert replay.main([str(path)]) == 1 and says in capsys.readouterr().out
        else:
            with pytest.raises(UserError, match="no parameter of this model|field 'frozen' is"):
                replay.main([str(path)])


@pytest.mark.parametrize("fields, says", [
    ({"frozen": ["h.7.weight"]}, "h.7.weight: no parameter of this model"),
    ({"frozen": "wte.weight"}, "fields 'frozen' and 'missed' are not names and step counts"),
    ({"missed": {"wte.weight": -1}}, "fields 'frozen' and 'missed' are not names and step counts"),
    ({"missed": {"nobody": 1}}, "nobody is not a parameter of this model"),
], ids=str)  # fmt: skip
def test_a_checkpoint_that_freezes_what_is_not_there(tmp_path, fields, says):
    trainer = make_trainer()
    state = RunState("demo", training=asdict(trainer.config), model=trainer.model.config.to_dict())
    path = write_checkpoint(str(tmp_path), replace(snapshot(trainer, state), **fields))
    with pytest.raises(UserError, match=says):
        restore(make_trainer(), read_checkpoint(path))
