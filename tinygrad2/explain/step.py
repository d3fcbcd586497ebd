"""One training step of a GPT on one text, taken apart: the graph, the gradient of every tensor in it and of every
parameter, the loss of each position, and the update that Adam would make.

The step is that of train_gpt2.py: `model.loss(x, y).backward()`, clipping, Adam. An observer (function.py) notes norms
while it runs, and keeps no array, so that the memory of the step is what it always is.
"""

import inspect
import weakref
from dataclasses import dataclass, field

import numpy as np

from tinygrad2.backend import is_array
from tinygrad2.dispatch import OPS
from tinygrad2.explain.memory import MemoryObserver
from tinygrad2.explain.recorder import input_names
from tinygrad2.explain.text import rounded
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.function import observe
from tinygrad2.monitor.module_path import ModulePath
from tinygrad2.optim import Adam, clip_scale, grad_norm
from tinygrad2.tensor import no_grad


@dataclass
class Output:
    """A tensor in the graph: its shape, its norm, and those of its gradient, whole and for each token."""

    shape: tuple
    norm: float
    grad: float | None = None
    grad_of_token: list | None = None


@dataclass
class Node:
    """A use of an op in the graph.

    kernel    the class that computed it
    layer     the module in which it ran
    inputs    for each input (name, shape, where it comes from): (number of a node, its output), the name of a
              parameter, or None if no gradient goes there
    outputs   its results
    """

    op: str
    kernel: str
    layer: str
    inputs: list
    outputs: list


@dataclass
class Update:
    """What a step does to a parameter: Euclidean norms of the weights, of the gradient and of the update.

    largest    the largest gradient, and of how many elements the gradient is exactly zero
    """

    name: str
    shape: tuple
    weight: float
    grad: float
    largest: float
    zeros: int
    update: float = 0.0

    @property
    def ratio(self):
        """Norm of the update as a share of the norm of the weights."""
        return self.update / self.weight if self.weight else float("inf")


@dataclass
class Moments:
    """Where an Adam stands.

    values    {"m.<parameter>": array, "v.<parameter>": array}
    t         its steps so far; missed: {name: steps in which this parameter was frozen}
    frozen    names of the parameters that are frozen
    """

    values: dict
    t: int
    missed: dict = field(default_factory=dict)
    frozen: list = field(default_factory=list)


class GraphObserver(ModulePath):
    """Notes the graph of a step, with the norms of all values and gradients; for `observe`. `nodes`: Node, in order."""

    def __init__(self, model, n_tokens):
        super().__init__(model)
        self.n_tokens, self.nodes = n_tokens, []
        self._number = weakref.WeakKeyDictionary()                # {node of the graph: its number}; it may be freed
        self._parameters = {id(parameter): name for name, parameter in model.named_parameters()}

    def after_forward(self, node, arrays, results):
        """Called with the op's inputs and its results."""
        if not node.parents:
            return
        inputs = [(name, array.shape, self._source(edge))
                  for name, array, edge in zip(input_names(node), arrays, node.parents) if is_array(array)]  # fmt: skip
        outputs = [Output(result.shape, norm(result)) for result in results]
        self._number[node] = len(self.nodes)
        self.nodes.append(Node(node.name, type(node).__name__, self.path[-1], inputs, outputs))

    def after_backward(self, node, dout, dinputs):
        """Called in backward with an op's incoming and outgoing gradients."""
        outputs = self.nodes[self._number[node]].outputs
        for output, gradient in zip(outputs, dout if isinstance(dout, tuple) else (dout,)):
            output.grad, output.grad_of_token = norm(gradient), token_norms(gradient, self.n_tokens)

    def after_leaf(self, node, i, leaf, gradient):
        """Called when a gradient has been added to that of a leaf: nothing to do."""

    def _source(self, edge):
        if edge is None:
            return None
        parent, output = edge
        return self._parameters.get(id(parent)) if parent.is_leaf else (self._number[parent], output)


class Step:
    """One step on one text.

    model       in evaluation mode: the step is without dropout
    tokens      ids of the text (T + 1,): the first T are the input, the last T the targets
    optimizer   {"lr", "betas", "weight_decay", "grad_clip"}
    moments     Moments of the Adam that makes the step, or None: a new one

    losses      of each position (T,), nats, float64, from the model's own logits
    loss        the step's, their mean, as the fused op returned it
    nodes       the graph: Node, in the order of forward
    norm        of the gradient of all parameters; scale: what clipping multiplies it by
    updates     an Update for each parameter
    grads       {name: a copy of the gradient}
    memory      the MemoryObserver of forward and backward
    fixed       {what: bytes} of the arrays that are there before and after
    """

    def __init__(self, model, tokens, optimizer, moments=None):
        self.model = model
        self.x, self.y = (np.asarray(part)[None] for part in (tokens[:-1], tokens[1:]))         # (1, T)
        self.losses = losses_of(model, self.x, self.y)
        self.flat = FlatBuffers(model)
        graph = GraphObserver(model, self.x.shape[1])
        self.memory = MemoryObserver(model, [self.flat.data, self.flat.grad_buffer])
        with observe(graph), observe(self.memory):
            loss = model.loss(self.x, self.y)
            loss.backward()
        self.loss, self.nodes = loss.item(), graph.nodes
        del loss
        self.norm = float(grad_norm(self.flat.grad))
        self.scale = float(clip_scale(self.flat.data.dtype.type(self.norm), optimizer["grad_clip"]))
        self.grads = {name: parameter.grad.copy() for name, parameter in model.named_parameters()}
        self.updates = self._updates(optimizer, moments)

    def _updates(self, optimizer, moments):
        """The Update of each parameter by a step of Adam. Then the weights are as before. Raises ValueError for moments
        that are not this model's."""
        updates = []
        for name, parameter in self.model.named_parameters():
            grad = self.grads[name]
            updates.append(Update(name, parameter.shape, norm(parameter.data), norm(grad),
                                  float(np.abs(grad).max(initial=0)), int((grad == 0).sum())))  # fmt: skip
        before = self.flat.data.copy()
        adam = Adam(self.flat, optimizer["betas"], weight_decay=optimizer["weight_decay"])
        wanted = self.flat.frozen
        if moments is not None:
            adam.load_state_dict(moments.values, moments.t, moments.missed)
            self.flat.freeze(moments.frozen)
        if len(self.flat.frozen) < len(updates):
            adam.step(optimizer["lr"], self.scale)
        self.flat.freeze(wanted)
        self.fixed = {"weights": self.flat.data.nbytes, "gradients": self.flat.grad_buffer.nbytes,
                      "Adam: m and v": adam.m.nbytes + adam.v.nbytes}  # fmt: skip
        views = self.flat.named_views(self.flat.data - before)
        for update in updates:
            update.update = norm(views[update.name])
        self.flat.data[...] = before
        return updates


def losses_of(model, x, y):
    """-ln p of each target y (1, T) after the tokens x (1, T): (T,) float64."""
    with no_grad():
        logits = model(x)[0].numpy()[0].astype(np.float64)        # (T, V)
    shifted = logits - logits.max(-1, keepdims=True)
    return np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(logits)), y[0]]


def norm(array):
    """The Euclidean norm of all elements, in float64."""
    return float(np.linalg.norm(np.asarray(array, np.float64)))


def token_norms(array, n_tokens):
    """The norm of each token's part of an array (1, T, C), (1, nh, T, hs) or (T, C): a list; None for other shapes."""
    axis = {2: 0, 3: 1, 4: 2}.get(array.ndim)
    if axis is None or array.shape[axis] != n_tokens or (array.ndim > 2 and array.shape[0] != 1):
        return None
    others = tuple(i for i in range(array.ndim) if i != axis)
    return np.sqrt((np.asarray(array, np.float64) ** 2).sum(others)).tolist()


def derivation(op):
    """The docstring of an op: formula, derivation of the gradient, source. "" where Python has removed it (-OO)."""
    return inspect.cleandoc(OPS[op].__doc__ or "")


def page_of_step(step):
    """The Step as JSON values for the page (step.js); numbers have four significant digits."""
    return {
        "targets": step.y[0].tolist(),
        "loss": step.loss,
        "losses": rounded(step.losses, 5),
        "norm": rounded(step.norm),
        "scale": rounded(step.scale),
        "nodes": [_node(node) for node in step.nodes],
        "ops": {op: {"text": derivation(op), "file": OPS[op].__module__.replace(".", "/") + ".py"}
                for op in sorted({node.op for node in step.nodes})},
        "updates": [{"name": u.name, "shape": u.shape, "weight": rounded(u.weight), "grad": rounded(u.grad),
                     "largest": rounded(u.largest), "zeros": u.zeros, "update": rounded(u.update),
                     "ratio": rounded(u.ratio)} for u in step.updates],
    }  # fmt: skip


def _node(node):
    outputs = []
    for output in node.outputs:
        grad = None if output.grad is None else rounded(output.grad)
        tokens = None if output.grad_of_token is None else rounded(output.grad_of_token, 3)
        outputs.append({"shape": output.shape, "norm": rounded(output.norm), "grad": grad, "tokens": tokens})
    return {"op": node.op, "kernel": node.kernel, "layer": node.layer, "inputs": node.inputs, "outputs": outputs}
