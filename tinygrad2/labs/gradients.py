"""The gradients of a student's op, compared with numerical ones in float64: along random directions first, which costs
little, and element by element if they disagree."""

import numpy as np

from tinygrad2.grad_check import numeric_gradient
from tinygrad2.labs.diagnose import compare
from tinygrad2.labs.lab import Wrong
from tinygrad2.tensor import apply

_STEP = 1e-3  # of the five-point formula, see grad_check.py
_ATOL = 1e-10  # above the rounding error of a numerical gradient


class Use:
    """One forward and backward of a Function on arrays.

    op       the class
    inputs   {name: array or None}
    dout     random, like the result: all ones would test nothing where rows always sum to the same
    grads    {name: what backward has returned}
    """

    def __init__(self, op, inputs, rng, options=None, layout=np.asarray):
        self.op, self.inputs, self.options = op, inputs, options or {}
        arrays = list(inputs.values())
        is_float = [a is not None and a.dtype.kind == "f" for a in arrays]
        node = op(np, is_float)
        self.out = np.asarray(node.forward(*arrays, **self.options))
        self.dout = layout(rng.standard_normal(self.out.shape))
        others = [*arrays, self.dout, self.out]  # whose arrays are not backward's own
        before = [None if a is None else a.copy() for a in others]
        returned = node.backward(self.dout)
        for name, array, old in zip([*inputs, "dout", "the result of forward"], others, before):
            if old is not None and not np.array_equal(array, old, equal_nan=True):
                raise Wrong(f"backward has changed {name} in place: others still read it; work on a copy, or write "
                            "a = a * b for a *= b")  # fmt: skip
        returned = list(returned) if isinstance(returned, (tuple, list)) else [returned]
        if len(returned) != len(arrays):
            raise Wrong(f"backward returns {len(returned)} gradients for the {len(arrays)} inputs {', '.join(inputs)}: "
                        "one each, None where there is none")  # fmt: skip
        self.grads = dict(zip(inputs, returned))

    def numeric(self, name):
        """The gradient of an input, measured."""
        arrays = list(self.inputs.values())
        call = lambda *tensors: apply(self.op, *tensors, **self.options)  # noqa: E731
        return numeric_gradient(call, arrays, list(self.inputs).index(name), self.dout)

    def _agrees(self, name):
        """Is the gradient of this input an array that agrees with the slopes along three random directions?"""
        array, gradient = self.inputs[name], self.grads[name]
        if not isinstance(gradient, np.ndarray) or gradient.shape != array.shape or not np.isfinite(gradient).all():
            return False
        for seed in range(3):
            direction = np.random.default_rng(seed).uniform(-1, 1, array.shape)
            change = 8 * (self._moved(name, direction, 1) - self._moved(name, direction, -1))
            change -= self._moved(name, direction, 2) - self._moved(name, direction, -2)
            measured, computed = (self.dout * change).sum() / (12 * _STEP), gradient * direction
            if abs(measured - computed.sum()) > max(_ATOL, 1e-8 * np.abs(computed).sum()):
                return False
        return True

    def _moved(self, name, direction, steps):
        """The result of forward with this input moved."""
        moved = self.inputs | {name: self.inputs[name] + steps * _STEP * direction}
        return self.op(np, [False]).forward(*moved.values(), **self.options)

    def check(self, name, **traces):
        """Raises Wrong unless the gradient of this input is the measured one. `traces`: see `compare`."""
        if self._agrees(name):
            return
        compare(f"d{name}", self.grads[name], self.numeric(name), atol=_ATOL, **traces)


def check_in_the_engine(op, inputs, rng, options=None):
    """The same inside a graph, where the result has two uses and the gradients pass through the engine's own checks."""
    from tinygrad2.tensor import Tensor

    tensors = [a if a is None or a.dtype.kind != "f" else Tensor(a, requires_grad=True) for a in inputs.values()]
    out = apply(op, *tensors, **(options or {}))
    first, second = rng.standard_normal(out.shape), rng.standard_normal(out.shape)
    try:
        ((out * first).sum() + (out * second).sum()).backward()
    except (ValueError, TypeError, AttributeError) as error:
        raise Wrong(f"the engine refuses the gradient: {error}") from None
    use = lambda *tensors: apply(op, *tensors, **(options or {}))  # noqa: E731
    for i, (name, tensor) in enumerate(zip(inputs, tensors)):
        if isinstance(tensor, Tensor):
            expected = numeric_gradient(use, list(inputs.values()), i, first + second)
            try:
                compare(f"d{name} of a result with two uses", tensor.grad, expected, atol=_ATOL)
            except Wrong as wrong:
                cause = "if the cases above are right: is something changed or lost that is still needed?"
                raise Wrong(f"{str(wrong).splitlines()[0]}\n{cause}") from None


def transposed(array):
    """The same values in column order: not contiguous, as what comes from a transpose."""
    return np.asfortranarray(array) if array.ndim > 1 else np.repeat(array, 2)[::2]
