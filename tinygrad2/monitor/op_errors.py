"""The rounding errors of each op, forward and backward, while a model computes.

    observer = OpErrors(model)
    with observe(observer):
        model.loss(x, y).backward()
    observer.errors                       an OpError for each use of an op

Each op is computed a second time: its reference implementation, in float64, with the same inputs. So an error is the
op's own, not one that it was given. What the errors of an op's result do to the loss is their sum, each times the
gradient of the loss at that place: to first order these shares add up to the error of the loss.
"""

import inspect
import math
from dataclasses import dataclass

import numpy as np

from tinygrad2.backend import is_array
from tinygrad2.deferred import DeferredGradient
from tinygrad2.dispatch import OPS
from tinygrad2.halves import is_floating
from tinygrad2.monitor.module_path import ModulePath


@dataclass
class OpError:
    """One use of an op; errors are relative, in the root of the mean square.

    layer, op     where, and which
    forward       error of the result
    backward      largest error of a gradient, that of the input `name`
    share         what the result's errors add to the loss
    """

    layer: str
    op: str
    forward: float
    backward: float = 0.0
    name: str = ""
    share: float = 0.0

    @property
    def worst(self):
        """The larger of the two errors; infinite if one of them is not a number."""
        return max(self.forward, self.backward) if self.forward + self.backward < math.inf else math.inf


class OpErrors(ModulePath):
    """Measures them; for `observe` (function.py). Ops of which nothing is a float32 array are left out."""

    def __init__(self, model):
        super().__init__(model)
        self.errors, self._waiting = [], {}

    def after_forward(self, node, arrays, results):
        """Called with the op's inputs and its results."""
        if not any(is_array(array) and array.dtype == np.float32 for array in (*arrays, *results)):
            return
        differences, sizes = [], []
        _, exact = _in_float64(node, arrays)
        for result, right in zip(results, exact):
            differences.append(result - right)
            sizes.append(np.linalg.norm(right))
        error = OpError(self.path[-1], node.name, _relative(differences, sizes))
        self.errors.append(error)
        if any(node.needs_grad):
            self._waiting[node] = error, arrays, differences

    def after_backward(self, node, dout, dinputs):
        """Called in backward with an op's incoming and outgoing gradients."""
        if node not in self._waiting:
            return
        error, arrays, differences = self._waiting.pop(node)
        douts = dout if isinstance(dout, tuple) else (dout,)
        error.share = float(sum(np.vdot(np.asarray(d, np.float64), e) for d, e in zip(douts, differences)))
        again, _ = _in_float64(node, arrays)
        wide = tuple(np.asarray(d, np.float64) for d in douts)
        names = list(inspect.signature(type(node).forward).parameters)[1:]
        for i, (got, exact) in enumerate(zip(dinputs, again.backward(wide if node.several else wide[0]))):
            if got is None or exact is None:
                continue
            got = got.copy() if isinstance(got, DeferredGradient) else got
            found = _relative([got - exact], [np.linalg.norm(exact)])
            if not found <= error.backward:
                error.backward, error.name = found, names[i] if i < len(names) else str(i)

    def after_leaf(self, node, i, leaf, gradient):
        """Called when a gradient has been added to that of a leaf: nothing to do."""


def _in_float64(node, arrays):
    """(a use of the op's reference implementation, its results) with the same inputs, as float64."""
    use = OPS[node.name](np, node.needs_grad)
    wide = [a.astype(np.float64) if is_array(a) and is_floating(a.dtype) else a for a in arrays]
    results = use.forward(*wide, **node.options)
    return use, results if isinstance(results, tuple) else (results,)


def _relative(differences, sizes):
    """The size of all differences together, relative to that of the exact values; 0 for what is exactly zero."""
    difference, size = np.linalg.norm([np.linalg.norm(d) for d in differences]), np.linalg.norm(sizes)
    return float(difference / size) if size else float(difference)
