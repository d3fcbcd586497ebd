"""The gradients of a student's op, compared with numerical ones in float64: along random directions first, which costs
little, and element by element if they disagree."""

import sys
import traceback

import numpy as np

from tinygrad2.labs.diagnose import compare
from tinygrad2.labs.lab import Wrong
from tinygrad2.labs.load import shipped_op
from tinygrad2.tensor import Tensor, apply

_STEPS = (1e-3, 1.25e-4)  # of the five-point formula (grad_check.py); what they disagree by is the error of measuring
_ATOL = 1e-10  # above the rounding error of a numerical gradient
_RTOL = 1e-8  # a step in float32 is off by more
_RTOL_FLOAT32 = 2e-5  # of a computation in float32: some steps, each rounded to 6e-8


class _Slopes:
    """What the gradients must be: sum(dout * op(inputs)) is measured with one input moved."""

    def __init__(self, op, inputs, options, dout):
        self.op, self.inputs, self.options, self.dout = op, inputs, options, dout

    def along(self, name, direction, step):
        """The slope along a direction (an array like the input), by the five-point formula."""
        change = 8 * (self._moved(name, direction, step) - self._moved(name, direction, -step))
        change -= self._moved(name, direction, 2 * step) - self._moved(name, direction, -2 * step)
        return (self.dout * change).sum() / (12 * step)

    def _moved(self, name, direction, step):
        moved = self.inputs | {name: self.inputs[name] + step * direction}
        return self.op(np, [False]).forward(*moved.values(), **self.options)

    def gradient(self, name):
        """(the gradient of an input, element by element; how far it may be off)"""
        gradients = np.zeros((len(_STEPS), *self.inputs[name].shape))
        for index in np.ndindex(self.inputs[name].shape):
            direction = np.zeros(self.inputs[name].shape)
            direction[index] = 1.0
            for i, step in enumerate(_STEPS):
                gradients[(i, *index)] = self.along(name, direction, step)
        return gradients[-1], float(np.abs(gradients[0] - gradients[-1]).max(initial=0.0))


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
        self._check_forward(arrays)
        self.dout = layout(rng.standard_normal(self.out.shape)).astype(self.out.dtype)
        others = [*arrays, self.dout, self.out]  # whose arrays are not backward's own
        before = [None if a is None else a.copy() for a in others]
        returned = node.backward(self.dout)
        for name, array, old in zip([*inputs, "dout", "the result of forward"], others, before):
            if old is not None and not np.array_equal(array, old, equal_nan=True):
                raise Wrong(f"backward has changed {name} in place: others still read it; work on a copy, or write "
                            "a = a * b for a *= b")  # fmt: skip
        returned = list(returned) if isinstance(returned, (tuple, list)) else [returned]
        if len(returned) != len(arrays):
            inputs_text = f"{len(arrays)} input{'s' * (len(arrays) > 1)} {', '.join(inputs)}"
            raise Wrong(f"backward returns {len(returned)} gradients for the {inputs_text}: one each, None where "
                        "there is none")  # fmt: skip
        self.grads = dict(zip(inputs, returned))
        self.slopes = _Slopes(op, inputs, self.options, self.dout)

    def _check_forward(self, arrays):
        """Gradients are measured with the student's forward, so it must still be the shipped one."""
        right = np.asarray(shipped_op(self.op.name)(np, [False]).forward(*arrays, **self.options))
        if self.out.shape != right.shape or not np.allclose(self.out, right, 1e-5, 1e-8, equal_nan=True):
            raise Wrong("forward has another result than in the shipped file: something outside of the hole was "
                        "changed; compare the two, or begin with lab reset (this file stays)")  # fmt: skip

    def _agrees(self, name):
        """Is the gradient of this input an array that agrees with the slopes along three random directions?"""
        array, gradient = self.inputs[name], self.grads[name]
        if not isinstance(gradient, np.ndarray) or gradient.shape != array.shape or not np.isfinite(gradient).all():
            return False
        for seed in range(3):
            direction = np.random.default_rng(seed).uniform(-1, 1, array.shape)
            measured, computed = self.slopes.along(name, direction, _STEPS[0]), gradient * direction
            if abs(measured - computed.sum()) > max(_ATOL, 0.1 * _RTOL * np.abs(computed).sum()):
                return False
        return True

    def check(self, name, **traces):
        """Raises Wrong unless the gradient of this input is the measured one. `traces`: see `compare`."""
        if self._agrees(name):
            return
        expected, error = self.slopes.gradient(name)
        others = {f"d{other}": array.shape for other, array in self.inputs.items() if other != name and
                  array is not None and array.dtype.kind == "f"}  # fmt: skip
        compare(f"d{name}", self.grads[name], expected, _RTOL, max(_ATOL, error), others=others, **traces)


def check_in_the_engine(op, inputs, rng, options=None):
    """The same inside a graph, where the result has two uses and the gradients pass through the engine's own checks; in
    float64 and in float32, in which models are trained. Returns what `check_dtype` has to say, "" if nothing."""
    uses, douts, right = {}, None, {}
    for dtype in (np.float64, np.float32):
        cast = {name: a.astype(dtype) if a is not None and a.dtype.kind == "f" else a for name, a in inputs.items()}
        uses[dtype] = Use(op, cast, rng, options)
    note = check_dtype(lambda dtype: {
        f"d{name}": (gradient, uses[dtype].inputs[name].dtype)
        for name, gradient in uses[dtype].grads.items() if gradient is not None})  # fmt: skip
    for dtype in (np.float64,) if note else (np.float64, np.float32):
        tensors = [Tensor(a, requires_grad=True) if a is not None and a.dtype.kind == "f" else a
                   for a in uses[dtype].inputs.values()]  # fmt: skip
        out = apply(op, *tensors, **(options or {}))
        if douts is None:
            douts = rng.standard_normal((2, *out.shape))
            slopes = _Slopes(op, inputs, options or {}, douts.sum(0))
            right = {name: slopes.gradient(name) for name, x in zip(inputs, tensors) if isinstance(x, Tensor)}
        first, second = douts.astype(dtype)
        try:
            ((out * first).sum() + (out * second).sum()).backward()
        except (ValueError, TypeError, AttributeError) as error:
            if _is_in_the_file(error, op):
                raise
            raise Wrong(f"the engine refuses the gradient: {error}") from None
        for name, tensor in zip(inputs, tensors):
            if name in right:
                _compare_in_the_engine(name, tensor.grad, *right[name], dtype == np.float32)
    if len(right) > 1:
        for name in right:
            _check_alone(op, uses[np.float64], name)
    return note


def _check_alone(op, use, name):
    """The others are constants: then backward may return None for them, and must return this one."""
    node = op(np, [other == name for other in use.inputs])
    node.forward(*use.inputs.values(), **use.options)
    found = node.backward(use.dout)
    found = dict(zip(use.inputs, found if isinstance(found, (tuple, list)) else [found]))
    compare(f"d{name}, if no other gradient is wanted,", found.get(name), use.grads[name], _RTOL)


def _compare_in_the_engine(name, found, expected, error, is_float32):
    try:
        compare(f"d{name} of a result with two uses" + (", in float32," if is_float32 else ""), found, expected,
                _RTOL_FLOAT32 if is_float32 else _RTOL, max(_ATOL, error))  # fmt: skip
    except Wrong as wrong:
        cause = ("in float64 it is right: digits are lost, as in a difference of nearly equal numbers" if is_float32
                 else "if the cases above are right: is something changed or lost that is still needed?")  # fmt: skip
        raise Wrong(f"{str(wrong).splitlines()[0]}\n{cause}") from None


def check_dtype(gradients):
    """gradients(dtype) -> {name: (gradient, dtype of its input)}, for inputs of float64 and of float32. Raises Wrong if
    digits are thrown away, or if it is no array; returns a note if it has more digits than the engine will take."""
    note = ""
    for dtype in (np.float64, np.float32):
        for name, (gradient, right) in gradients(dtype).items():
            if np.dtype(right).kind != "f" or isinstance(gradient, float):
                continue
            if not isinstance(gradient, (np.ndarray, np.generic)):
                raise Wrong(f"{name} is {type(gradient).__name__}: inside a graph it must be an array (x.data of a "
                            "Tensor, np.array(...) of a list)")  # fmt: skip
            if gradient.dtype == np.float64 != right:
                note = (f"note: the numbers are right, but of float32 inputs {name} is float64, which the engine would "
                        "refuse: np.zeros and np.eye have dtype=, and math.sqrt(2) * x keeps the dtype of x, unlike "
                        "np.sqrt(2) * x")  # fmt: skip
            elif gradient.dtype != right:
                raise Wrong(f"{name} is {gradient.dtype}, of inputs of {np.dtype(right)}: digits are lost, and the "
                            "engine takes a gradient in the dtype of its input only; astype, or a dtype= somewhere?")
    return note


def _is_in_the_file(error, op):
    """Was it raised in the student's file, or in what that has called?"""
    path = getattr(sys.modules.get(op.__module__), "__file__", None)
    return any(frame.filename == path for frame in traceback.extract_tb(error.__traceback__))


def transposed(array):
    """The same values in column order: not contiguous, as what comes from a transpose."""
    return np.asfortranarray(array) if array.ndim > 1 else np.repeat(array, 2)[::2]
