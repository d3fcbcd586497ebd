"""Lab tied_head: one matrix, used at both ends of the model, which gets both gradients."""

import numpy as np

from models.config import GPTConfig
from ops import cross_entropy, linear
from tinygrad2.labs.diagnose import compare
from tinygrad2.labs.lab import Lab, Wrong
from tinygrad2.tensor import Tensor

LAB = Lab(
    "tied_head", "models/gpt.py", "logits from the token embedding, and the gradient of both of its uses",
    "x (..., C) is a Tensor of final hidden states. Return the logits (..., V), a Tensor. If self.lm_head is a module "
    "(not None), it makes them; otherwise the head is tied: logit i is the inner product of x with row i of the token "
    "embedding self.wte.weight (V, C), a Parameter.",
    (
        "x (..., C) times a matrix (C, V) gives (..., V). The table is (V, C).",
        "ops.linear(x, weight) multiplies by a weight (in, out), without a bias; W.T of a Tensor is a view "
        "that the graph knows.",
        "Use the Parameter itself, not .data and not a copy: then backward adds the gradient of the head to that of "
        "the embedding, in the same array.",
    ),
)  # fmt: skip


def _model(student, rng, tied=True, V=7, C=4):
    """A tiny GPT in float64."""
    model = student.GPT(GPTConfig(5, V, 1, 2, C, tied_head=tied), seed=int(rng.integers(1 << 30)))
    for parameter in model.parameters():
        parameter.data = 0.5 * rng.standard_normal(parameter.shape)
    return model


def _logits(model, x):
    logits = model.logits(x)
    if not isinstance(logits, Tensor):
        raise Wrong(f"logits is {type(logits).__name__}, not a Tensor: the graph ends here")
    shape = (*x.shape[:-1], len(model.wte.weight.numpy()))
    if logits.shape != shape:
        raise Wrong(f"logits has shape {logits.shape}, not {shape}, of x {x.shape}: one number for each row of the "
                    "table, at every position")  # fmt: skip
    return logits


@LAB.case(3, "the values of the logits, also of one position only")
def _(student, rng):
    model = _model(student, rng)
    W = model.wte.weight.numpy()
    for shape in ((2, 3, 4), (3, 4)):
        x = rng.standard_normal(shape)
        sizes = {"4, the number of channels": 4, "sqrt(C) = 2": 2}
        directions = W / np.linalg.norm(W, axis=1)[:, None]
        suspects = {"the rows of the table are divided by their lengths": x @ directions.T}
        compare("logits", _logits(model, Tensor(x)).numpy(), x @ W.T, sizes=sizes, suspects=suspects)


@LAB.case(1, "an untied head is lm_head")
def _(student, rng):
    model = _model(student, rng, tied=False)
    x = rng.standard_normal((2, 4))
    suspects = {"the token embedding is used although there is an lm_head": x @ model.wte.weight.numpy().T}
    found = _logits(model, Tensor(x)).numpy()
    compare("logits of a model with lm_head", found, x @ model.lm_head.weight.numpy(), suspects=suspects)


@LAB.case(1, "it is the same matrix: a change of the embedding changes the logits")
def _(student, rng):
    model, x = _model(student, rng), rng.standard_normal((2, 4))
    before = _logits(model, Tensor(x)).numpy().copy()
    model.wte.weight.data = 3 * model.wte.weight.data
    compare("logits after the embedding was multiplied by 3", _logits(model, Tensor(x)).numpy(), 3 * before,
            suspects={"the head has kept a copy of the old embedding": before})  # fmt: skip


@LAB.case(1, "the gradient of x")
def _(student, rng):
    model, x, dout = _model(student, rng), Tensor(rng.standard_normal((2, 3, 4)), requires_grad=True), None
    logits = _logits(model, x)
    dout = rng.standard_normal(logits.shape)
    if not logits.requires_grad:
        raise Wrong("the logits are not connected to x by a graph: the result was computed from .data, or detached")
    logits.backward(dout)
    if x.grad is None:
        raise Wrong("x has no gradient: it was taken out of the graph (x.data, or detach) before the product")
    compare("dx", x.grad, dout @ model.wte.weight.numpy())


@LAB.case(4, "the embedding gets the gradients of both its uses")
def _(student, rng):
    model = _model(student, rng)
    W = model.wte.weight
    tokens, targets = rng.integers(0, 7, (2, 4)), rng.integers(0, 7, (2, 4))
    _logits(model, model.hidden(tokens))
    loss = model(tokens, targets)[1]
    if not loss.requires_grad:
        raise Wrong("the loss is not connected to any parameter by a graph: the logits were computed from .data")
    loss.backward()
    found = np.zeros(W.shape) if W.grad is None else W.grad.copy()
    hidden, table = model.hidden(tokens).detach(), Tensor(W.numpy().copy(), requires_grad=True)
    cross_entropy(linear(hidden, table.T), targets).backward()
    head, expected = table.grad, np.zeros(W.shape)
    for index in np.ndindex(W.shape):                             # the slope of the loss, five-point formula
        values, start, h = {}, W.data[index], 1e-3
        for step in (-2, -1, 1, 2):
            W.data[index] = start + step * h
            logits = model.hidden(tokens).numpy() @ W.numpy().T
            values[step] = float(cross_entropy(Tensor(logits), targets).numpy())
        W.data[index] = start
        expected[index] = (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * h)
    compare("the gradient of wte.weight", found, expected, terms={
        "the part through the head": head, "the part through the embedding": expected - head})  # fmt: skip
