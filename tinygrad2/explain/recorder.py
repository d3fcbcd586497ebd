"""The arrays that went into and came out of some ops of a model, with the module in which each op ran.

    recorder = Recorder(model, {"attention", "add"})
    with observe(recorder):
        model(tokens)
    recorder.one("attention", "h.0.attn.head").inputs         q, k, v
"""

import inspect
from dataclasses import dataclass
from typing import Any

from tinygrad2.monitor.module_path import ModulePath


@dataclass
class Use:
    """One use of an op: its name, the module in which it ran, inputs and results (arrays), options of forward."""

    op: str
    layer: str
    inputs: list
    results: list
    options: dict[str, Any]


class Recorder(ModulePath):
    """Keeps the forward passes of the ops called `names`; for `observe` (function.py). `uses`: in their order."""

    def __init__(self, model, names):
        super().__init__(model)
        self.wanted, self.uses = set(names), []

    def after_forward(self, node, arrays, results):
        """Called with the op's inputs and its results."""
        if node.name in self.wanted:
            self.uses.append(Use(node.name, self.path[-1], list(arrays), list(results), dict(node.options)))

    def after_backward(self, node, dout, dinputs):
        """Called in backward: nothing to do."""

    def after_leaf(self, node, i, leaf, gradient):
        """Called when a gradient has been added to that of a leaf: nothing to do."""

    def one(self, op, layer):
        """The only use of `op` in the module called `layer`. Raises LookupError if there is none, or several."""
        found = [use for use in self.uses if (use.op, use.layer) == (op, layer)]
        if len(found) != 1:
            raise LookupError(f"{op} ran {len(found)} times in {layer or 'the model itself'}, not once")
        return found[0]


def input_names(node):
    """The names of an op's inputs as its forward has them, followed by those of its options: x, weight, bias, ..."""
    return list(inspect.signature(type(node).forward).parameters)[1:]
