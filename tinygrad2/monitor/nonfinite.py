"""The first value that is not finite, in forward or backward: which op, in which layer, has computed it.

A NaN in the loss carries no information: within one step it reaches every value. So the step is computed again while an
observer checks the result of each op, and of each op's backward, as it comes.

    with observe(NonFiniteObserver(model)):
        model.loss(x, y).backward()              raises NonFinite

The weights are those before the step, and nothing in it is random (tinygrad2/prng.py): the same values come again.
"""

import inspect

from tinygrad2.backend import is_array, xp_of
from tinygrad2.deferred import DeferredGradient
from tinygrad2.halves import is_floating
from tinygrad2.monitor.module_path import ModulePath


class NonFinite(ArithmeticError):
    """The first value that is not finite. `finding` is a dict of JSON values: phase, op, kernel, layer, value, ..."""

    def __init__(self, finding):
        super().__init__(describe(finding))
        self.finding = finding


def describe(finding):
    """One line: which op, where, and what came out.

    "backward of attention in h.3.attn: gradient of q, 12 nan and 0 inf of 4,096 values"
    """
    layer = f" in {finding['layer']}" if finding["layer"] else ""
    where = f"{finding['phase']} of {finding['op']}{layer}: {finding['value']}"
    return f"{where}, {finding['nan']:,} nan and {finding['inf']:,} inf of {finding['size']:,} values"


def ranges(finding):
    """Lines "x float32 (8, 16, 32) from -3.1 to 2.9" for what went into the op."""
    for name, dtype, shape, low, high in finding["inputs"]:
        yield f"{name} {dtype} {tuple(shape)} from {low:.4g} to {high:.4g}"


class NonFiniteObserver(ModulePath):
    """Raises NonFinite at the first result that is not finite; for `observe` of tinygrad2/function.py.

    path    names of the modules that are running, the innermost last
    """

    def check_parameters(self, model):
        """Raises NonFinite if a parameter is not finite before anything is computed: then the last update did it."""
        for name, parameter in model.named_parameters():
            self._check(parameter.data, "update", "optimizer", None, f"parameter {name}", [], layer="")

    def after_forward(self, node, arrays, results):
        """Called by `apply` with the op's inputs and its results (a tuple of arrays)."""
        node.layer = self.path[-1]
        node.inputs = _describe(_names(node), arrays)
        for i, result in enumerate(results):
            value = "output" if len(results) == 1 else f"output {i}"
            self._check(result, "forward", node.name, node, value, node.inputs)

    def after_backward(self, node, dout, dinputs):
        """Called in backward with an op's incoming and outgoing gradients, before its saved values are freed."""
        for gradient in dout if isinstance(dout, tuple) else (dout,):
            self._check(gradient, "backward", node.name, node, "gradient that arrives", node.inputs)
        douts = _describe(["dout"], dout if isinstance(dout, tuple) else (dout,))
        for name, gradient in zip(_names(node), dinputs):
            if is_array(gradient):
                self._check(gradient, "backward", node.name, node, f"gradient of {name}", douts + node.inputs)

    def after_leaf(self, node, i, leaf, gradient):
        """Called when a gradient has been added to that of a leaf: some are computed only then."""
        if isinstance(gradient, DeferredGradient):
            name = _names(node)[i]
            self._check(leaf.grad, "backward", node.name, node, f"gradient of {name}", node.inputs)

    def _check(self, array, phase, op, node, value, inputs, layer=None):
        xp = xp_of(array)
        if not is_floating(array.dtype) or bool(xp.isfinite(array).all()):
            return
        nan = int(xp.isnan(array).sum())
        finding = {
            "phase": phase,
            "op": op,
            "kernel": type(node).__name__ if node else "",
            "layer": node.layer if layer is None else layer,
            "value": value,
            "nan": nan,
            "inf": int((~xp.isfinite(array)).sum()) - nan,
            "size": int(array.size),
            "inputs": inputs,
        }
        raise NonFinite(finding)


def _names(node):
    """The names of the op's inputs, as its forward has them: x, weight, bias, ..."""
    parameters = inspect.signature(type(node).forward).parameters.values()
    names = [p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD]
    return names[1:] + [f"input {i}" for i in range(len(names) - 1, 100)]


def _describe(names, arrays):
    """[name, dtype, shape, smallest, largest] of each array of floats."""
    described = []
    for name, array in zip(names, arrays):
        if is_array(array) and is_floating(array.dtype) and array.size:
            low, high = float(array.min()), float(array.max())
            described.append([name, str(array.dtype), list(array.shape), low, high])
    return described
