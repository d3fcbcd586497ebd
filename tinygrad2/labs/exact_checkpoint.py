"""Lab exact_checkpoint: a training that was stopped goes on as if it had not been."""

import numpy as np

from models.config import GPTConfig
from models.dropout import set_dropout
from models.gpt import GPT
from tinygrad2.errors import UserError
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.labs.diagnose import compare
from tinygrad2.labs.lab import Lab, Wrong
from tinygrad2.loss_scale import LossScale
from tinygrad2.optim import Adam, learning_rate
from tinygrad2.training.checkpoint import Checkpoint

LAB = Lab(
    "exact_checkpoint", "tinygrad2/training/snapshot.py", "a resumed training is the same training, bit for bit",
    "Two holes in restore. The first loads the weights into trainer.model, the moments with both counts of steps "
    "(checkpoint.t, checkpoint.missed) into trainer.optimizer, and freezes in trainer.flat what was frozen, besides "
    "what is frozen already; a ValueError that it raises becomes one line for the user. The second sets "
    "trainer.done, the steps done, and trainer.position, where the next batch begins: two integers, a list in the "
    "checkpoint. The class Checkpoint in tinygrad2/training/checkpoint.py says what there is.",
    (
        "List what the next step depends on besides the weights: Adam's m and v, its t, the learning rate and "
        "dropout of that step, the batch.",
        "trainer.model and trainer.optimizer have a load_state_dict each, trainer.flat has freeze(names) and frozen. "
        "They copy into the memory that is there: the weights are views of one flat buffer, and must stay that.",
        "optimizer.load_state_dict(checkpoint.moments, checkpoint.t, checkpoint.missed); the step is "
        "checkpoint.step, the position checkpoint.state[\"position\"].",
    ),
)  # fmt: skip


class _Trainer:
    """As in train_gpt2.py, on one rank and on random tokens."""

    def __init__(self, seed, width=8):
        self.config = GPTConfig(block_size=4, vocab_size=13, n_layer=1, n_head=2, n_embd=width, dropout=0.1)
        self.model = GPT(self.config, seed=seed)
        self.flat = FlatBuffers(self.model)
        self.optimizer = Adam(self.flat, betas=(0.9, 0.99), weight_decay=0.1)
        self.loss_scale, self.done, self.position = LossScale(), 0, (0, 0)

    def step(self):
        """One step; returns its loss, a float."""
        epoch, first = self.position
        x, y = np.random.default_rng([epoch, first]).integers(0, 13, (2, 3, 4))
        self.flat.zero_grad()
        set_dropout(self.model, 1, self.done, 0)
        loss = self.model.loss(x, y)
        loss.backward()
        self.optimizer.step(learning_rate(self.done, "cosine", 0.03, 0.003, 3, 20))
        self.position = (epoch, first + 3) if first < 6 else (epoch + 1, 0)
        self.done += 1
        return float(loss.numpy())

    def checkpoint(self):
        copies = [{name: view.copy() for name, view in self.flat.named_views(array).items()}
                  for array in (self.flat.data, self.optimizer.m, self.optimizer.v)]  # fmt: skip
        weights, m, v = copies
        moments = {f"m.{name}": array for name, array in m.items()} | {f"v.{name}": array for name, array in v.items()}
        state = {"step": self.done, "position": list(self.position)}
        return Checkpoint(weights, moments, self.optimizer.t, state, "", self.config.to_dict(), b"", self.flat.frozen,
                          dict(self.optimizer.missed), "step_00000005")  # fmt: skip


def _trained(rng, steps=5, frozen=()):
    trainer = _Trainer(int(rng.integers(1 << 30)))
    trainer.flat.freeze(frozen)
    for _ in range(steps):
        trainer.step()
    return trainer


def _restored(student, rng, checkpoint):
    trainer = _Trainer(int(rng.integers(1 << 30)))
    student.restore(trainer, checkpoint)
    return trainer


@LAB.case(2, "the weights, in the flat buffer")
def _(student, rng):
    before = _trained(rng)
    after = _restored(student, rng, before.checkpoint())
    for name, parameter in after.model.named_parameters():
        compare(f"the parameter {name}", parameter.numpy(), before.model.state_dict()[name], 0)
        if not np.shares_memory(parameter.data, after.flat.data):
            raise Wrong(f"the parameter {name} is no view of flat.data any more: Adam would go on with other arrays; "
                        "copy into it, parameter.data[...] = ...")  # fmt: skip
    compare("flat.data", after.flat.data, before.flat.data, 0)


def _check_usable(trainer):
    """Can it make a step at all?"""
    try:
        epoch, first = trainer.position
        numbers = [int(trainer.done), int(epoch), int(first)]
    except (TypeError, ValueError):
        numbers = []
    if numbers != [trainer.done, *np.ravel(trainer.position).tolist()]:
        raise Wrong(f"trainer.done is {trainer.done!r}, and trainer.position {trainer.position!r}: they must be the "
                    "number of steps done, and two integers")  # fmt: skip
    for name in ("m", "v"):
        array = getattr(trainer.optimizer, name)
        if np.shape(array) != trainer.flat.data.shape:
            raise Wrong(f"optimizer.{name} has shape {np.shape(array)}, not {trainer.flat.data.shape} as flat.data, in "
                        "which there are gaps between the parameters: use the optimizer's load_state_dict")  # fmt: skip


@LAB.case(2, "the moments, and the number of steps that they are old")
def _(student, rng):
    before = _trained(rng)
    after = _restored(student, rng, before.checkpoint())
    m, v = before.optimizer.m, before.optimizer.v
    zero = {"they were not loaded: Adam begins again": np.zeros_like(m)}
    _check_usable(after)
    compare("the first moments, m,", after.optimizer.m, m, 0, suspects=zero | {"they are the second ones": v})
    compare("the second moments, v,", after.optimizer.v, v, 0, suspects=zero | {"they are the first ones": m})
    if after.optimizer.t != before.optimizer.t:
        raise Wrong(f"Adam's t is {after.optimizer.t}, not {before.optimizer.t}: its corrections, 1 - beta**t, would "
                    "be those of another step")  # fmt: skip


@LAB.case(2, "the steps done and the position in the data")
def _(student, rng):
    before = _trained(rng)
    after = _restored(student, rng, before.checkpoint())
    _check_usable(after)
    if after.done != before.done:
        raise Wrong(f"trainer.done is {after.done}, not {before.done}: the learning rate, the dropout masks and the "
                    "end of the training would be those of another step")  # fmt: skip
    if tuple(after.position) != before.position:
        raise Wrong(f"trainer.position is {tuple(after.position)}, not {before.position}: the same batches would be "
                    "seen again")  # fmt: skip


@LAB.case(1, "what is frozen, and the steps that it has missed")
def _(student, rng):
    names = {"wpe.weight", "h.0.ln_1.bias"}
    before = _trained(rng, frozen=names)
    checkpoint = before.checkpoint()
    after = _restored(student, rng, checkpoint)
    if set(after.flat.frozen) != names:
        raise Wrong(f"frozen are {sorted(after.flat.frozen)}, not {sorted(names)}")
    if after.optimizer.missed != before.optimizer.missed:
        raise Wrong(f"the steps missed are {after.optimizer.missed}, not {before.optimizer.missed}: moments of a "
                    "parameter that is freed later are as young as it")  # fmt: skip
    _check_usable(after)
    after.step()
    if checkpoint.missed != before.optimizer.missed:
        raise Wrong("checkpoint.missed has changed while the training went on: it was taken, not copied")
    mine = _Trainer(1)
    mine.flat.freeze({"ln_f.weight"})
    student.restore(mine, before.checkpoint())
    if set(mine.flat.frozen) != names | {"ln_f.weight"}:
        raise Wrong(f"ln_f.weight was frozen before, {sorted(mine.flat.frozen)} are afterwards: it must stay frozen")


@LAB.case(2, "four steps more have the same losses and weights, bit for bit, and the checkpoint is not changed")
def _(student, rng):
    before = _trained(rng)
    checkpoint = before.checkpoint()
    after, kept = _restored(student, rng, checkpoint), before.checkpoint()
    _check_usable(after)
    losses = [(before.step(), after.step()) for _ in range(4)]
    for i, (right, found) in enumerate(losses):
        if right != found:
            what = ("the weights, the batch or the dropout is another one" if i == 0 else
                    "the first step was right, so moments, t or the learning rate are to blame")  # fmt: skip
            raise Wrong(f"step {6 + i} has the loss {found:.7f} after a restart, {right:.7f} without: {what}")
    compare("the weights four steps later", after.flat.data, before.flat.data, 0)
    same = all(np.array_equal(checkpoint.weights[name], array) for name, array in kept.weights.items())
    if not same or any(not np.array_equal(checkpoint.moments[name], array) for name, array in kept.moments.items()):
        raise Wrong("the arrays of the checkpoint have changed while the training went on: they were taken, not copied")


@LAB.case(1, "a checkpoint of another model is refused in one line")
def _(student, rng):
    other = _Trainer(1, width=4).checkpoint()
    try:
        _restored(student, rng, other)
    except UserError as error:
        if "step_00000005" in str(error):
            return
        raise Wrong(f"the message does not name the checkpoint: {error}") from None
    raise Wrong("a checkpoint with other shapes was loaded without a word: load_state_dict would have said so")
