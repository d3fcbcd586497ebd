"""Numerical gradient check in float64, with a report and hints.

    def f(x, weight):
        return (x @ weight).exp()

    report = gradcheck(f, [np.random.randn(3, 4), np.random.randn(4, 2)])
    print(report)                      # one line per input; `report` is true if all is right

How.  The output is an array, so it is first reduced to a scalar with a *random* cotangent: F(x) = sum(dout * f(x)).
(All ones would test nothing about softmax or layernorm, whose rows always sum to the same.) Then the derivative of F
along a random direction d, which is <dx, d> by our gradient, is measured with a five-point difference:

    dF/dh = [8 (F(x + h d) - F(x - h d)) - (F(x + 2h d) - F(x - 2h d))] / 12h  +  O(h^4)

A smaller h makes the formula's own error smaller and the rounding error, about 1e-16 |F| / h, larger; with h = 1e-3
in float64 both are near 1e-12. In float32 neither could get below 1e-3: such a check passes wrong gradients.
Directions are cheap (four evaluations whatever the size); only if they disagree is every element measured.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinygrad2.function import Function
from tinygrad2.halves import is_floating
from tinygrad2.module import Parameter
from tinygrad2.tensor import Tensor, apply, no_grad

_STEP = 1e-3
_MAX_ELEMENTS = 2048  # of an input, measured one by one for the report


class InputReport:
    """The result for one input: `ok`, `error` (relative), and for a wrong one the worst element and a hint."""

    def __init__(self, number, shape, error, tolerance, analytic=None, numeric=None, hint=""):
        self.number, self.shape, self.error, self.ok = number, shape, error, error <= tolerance
        self.analytic, self.numeric, self.hint = analytic, numeric, hint

    def __str__(self):
        verdict = "ok" if self.ok else "WRONG"
        line = f"input {self.number}, shape {self.shape}: {verdict}, relative error {self.error:.1e}"
        if not self.ok and self.analytic is not None:
            difference = np.nan_to_num(np.abs(self.analytic - self.numeric), nan=math.inf)
            worst = np.unravel_index(np.argmax(difference), self.shape)
            index = "".join(f"[{i}]" for i in worst) or "[()]"
            analytic, numeric = self.analytic[worst], self.numeric[worst]
            line += f"\n    worst element {index}: analytic {analytic:.9g}, numeric {numeric:.9g}"
        if self.hint:
            line += f"\n    hint: {self.hint}"
        return line


class GradcheckReport:
    """The result of a gradcheck: true if every gradient is right; print it to read why not."""

    def __init__(self, name, inputs=(), failure=""):
        self.name, self.inputs, self.failure = name, list(inputs), failure
        self.ok = not failure and all(report.ok for report in self.inputs)

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self):
        lines = [f"gradcheck of {self.name}: {'PASS' if self.ok else 'FAIL'}"]
        if self.failure:
            lines.append(self.failure)
        lines += [str(report) for report in self.inputs]
        return "\n".join(lines).replace("\n", "\n  ")

    __repr__ = __str__  # so that `assert gradcheck(...)` in a test shows it


def gradcheck(
    fn: Callable[..., Tensor] | type[Function], inputs: Sequence[Any], rtol: float = 1e-7, seed: int = 0
) -> GradcheckReport:
    """Compare the gradients of `fn` with numerical ones.

    fn      takes as many Tensors as there are inputs and returns a Tensor; or a Function subclass
    inputs  arrays, Tensors or lists; the floating point ones become float64 and are checked, others are passed on, and
            so are frozen Parameters
    rtol    largest relative error that passes

    Returns a GradcheckReport, true if every gradient is right; a wrong gradient raises nothing.
    """
    if isinstance(fn, type):
        op: Any = fn
        return gradcheck(_named(lambda *args: apply(op, *args), op.name), inputs, rtol, seed)
    name = getattr(fn, "__name__", type(fn).__name__)
    rng = np.random.default_rng(seed)
    arrays = [_as_float64(value) for value in inputs]
    checked = [i for i, array in enumerate(arrays) if array is not None and is_floating(array.dtype)]
    checked = [i for i in checked if not isinstance(inputs[i], Parameter) or inputs[i].requires_grad]
    if not checked:
        return GradcheckReport(name, failure="nothing was checked: no input is of floats and not frozen")

    before: list[Any] = [None if array is None else array.copy() for array in arrays]
    out = _evaluate(fn, arrays)
    if not np.array_equal(out, _evaluate(fn, arrays), equal_nan=True):
        return GradcheckReport(name, failure="two calls returned different results: fix the seed inside first")
    if any(a is not None and not np.array_equal(a, b, equal_nan=True) for a, b in zip(arrays, before)):
        return GradcheckReport(name, failure="an input was changed in place by forward")
    dout = rng.standard_normal(out.shape)
    try:
        gradients = _analytic(fn, arrays, checked, dout)
    except (ValueError, TypeError) as error:  # of the wrong shape or dtype: the engine names op, input and both
        return GradcheckReport(name, failure=str(error))

    reports = []
    for i in checked:
        largest = max(_direction_error(fn, arrays, i, dout, gradients[i], rng) for _ in range(3))
        report = InputReport(i, arrays[i].shape, largest, rtol)
        if not report.ok and arrays[i].size <= _MAX_ELEMENTS:
            numeric = numeric_gradient(fn, arrays, i, dout)
            hint = _guess(fn, arrays, i, dout, gradients, numeric)
            report = InputReport(i, arrays[i].shape, largest, rtol, gradients[i], numeric, hint)
        reports.append(report)
    return GradcheckReport(name, reports)


def numeric_gradient(fn, arrays, i, dout):
    """dF/dx for every element of input i, F = sum(dout * fn(...)), measured one element at a time."""
    gradient = np.zeros(arrays[i].shape)
    for index in np.ndindex(arrays[i].shape):
        direction = np.zeros(arrays[i].shape)
        direction[index] = 1.0
        gradient[index] = _derivative(fn, arrays, i, direction, dout)
    return gradient


def _named(fn, name):
    fn.__name__ = name
    return fn


def _as_float64(value: Any) -> Any:
    """A fresh array: floats in float64, the rest as it is."""
    if value is None:
        return None
    array = np.array(value.numpy() if isinstance(value, Tensor) else value)
    return array.astype(np.float64) if is_floating(array.dtype) else array


def _evaluate(fn, arrays):
    with no_grad():
        return fn(*(None if a is None else Tensor(a) for a in arrays)).numpy().copy()


def _analytic(fn, arrays, checked, dout):
    """{input: gradient} by backward()."""
    tensors = [None if a is None else Tensor(a.copy(), requires_grad=i in checked) for i, a in enumerate(arrays)]
    out = fn(*tensors)
    if not out.requires_grad:
        return {i: np.zeros(arrays[i].shape) for i in checked}
    out.backward(dout.astype(out.dtype))
    return {i: np.zeros(arrays[i].shape) if tensors[i].grad is None else tensors[i].grad for i in checked}


def _derivative(fn, arrays, i, direction, dout):
    """dF along `direction` in input i: the five-point formula at the top of this file."""

    def moved(h):
        return _evaluate(fn, [a + h * direction if j == i else a for j, a in enumerate(arrays)])

    h = _STEP
    with np.errstate(all="ignore"):  # a step may leave the domain; the result is then nan
        change = 8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))  # before the sum: less cancels
    return float((dout * change).sum()) / (12 * h)


def _direction_error(fn, arrays, i, dout, gradient, rng):
    direction = rng.standard_normal(arrays[i].shape)
    direction /= max(1.0, np.abs(direction).max(initial=0.0))
    analytic = float((gradient * direction).sum())
    numeric = _derivative(fn, arrays, i, direction, dout)
    # If the terms cancel to nearly nothing, rounding is relative to the terms, not to what is left of them.
    scale = max(abs(analytic), abs(numeric), 1e-2 * float(np.abs(gradient * direction).sum()), 1e-4)
    error = abs(analytic - numeric) / scale
    return error if math.isfinite(error) else math.inf


def _guess(fn, arrays, i, dout, gradients, numeric):
    """A sentence about which classic mistake would give exactly this wrong gradient, or ""."""
    analytic = gradients[i]
    if not np.isfinite(analytic).all():
        return "the gradient is not finite here: 0 * inf, or a division by zero?"
    if not analytic.any():
        return "the gradient is zero everywhere: is this input used, and is its gradient returned at its position?"
    factor = _constant_factor(analytic, numeric)
    if factor is not None:
        return _explain_factor(factor, [a.shape for a in arrays if a is not None] + [dout.shape])
    if analytic.ndim >= 2 and analytic.shape[-1] == analytic.shape[-2] and _close(analytic.swapaxes(-1, -2), numeric):
        return "it is the transpose of the right one"
    for j, other in gradients.items():
        if j != i and other.shape == analytic.shape and _close(other, numeric):
            return f"this is right for input {i} but was returned for input {j}: swapped?"
    return _missing_sum(fn, arrays, i, dout, analytic)


def _close(a, b):
    return np.allclose(a, b, rtol=1e-5, atol=1e-7 * max(1.0, float(np.abs(b).max(initial=0.0))))


def _constant_factor(analytic, numeric):
    """c if analytic = c * numeric everywhere, else None."""
    weight = float((numeric * numeric).sum())
    if weight == 0:
        return None
    c = float((analytic * numeric).sum()) / weight
    return c if abs(c) > 1e-6 and _close(analytic / c, numeric) else None


def _explain_factor(factor, shapes):
    if abs(factor + 1) < 1e-5:
        return "every element has the wrong sign"
    inverse = round(1 / factor)
    lost = f": has a factor {inverse} been lost?" if abs(factor * inverse - 1) < 1e-5 else ""
    for n in sorted({n for shape in shapes for n in [*shape, math.prod(shape)] if n > 2}):
        if abs(factor - n) < 1e-5 * n:
            return f"{n} times too large, and {n} is a size of these arrays: a sum where a mean belongs?"
        if abs(factor * n - 1) < 1e-5:
            return f"{n} times too small, and {n} is a size of these arrays: a mean where a sum belongs?"
    return f"off by the constant factor {factor:.6g} everywhere{lost}"


def _missing_sum(fn, arrays, i, dout, analytic):
    """Was the gradient of one copy taken instead of the sum over all copies of a broadcast input?

    The input is expanded to the shape of the output, so that every copy has its own gradient; if summing
    these over some of the copied axes, and taking one entry (or the mean) along the others, equals what we got, that
    was the mistake.
    """
    shape = (1,) * (dout.ndim - analytic.ndim) + analytic.shape
    copied = [axis for axis, n in enumerate(shape) if n == 1 and len(shape) == dout.ndim and dout.shape[axis] > 1]
    try:
        full = [np.broadcast_to(a, dout.shape).copy() if j == i else a for j, a in enumerate(arrays)]
        if not copied or dout.size > _MAX_ELEMENTS or _evaluate(fn, full).shape != dout.shape:
            return ""
        per_copy = numeric_gradient(fn, full, i, dout)
    except (ValueError, IndexError, TypeError):  # this fn does not broadcast its inputs
        return ""
    take = [
        lambda g, axis: g.take([0], axis),
        lambda g, axis: g.take([-1], axis),
        lambda g, axis: g.mean(axis, keepdims=True),
    ]
    for n_missing in range(1, len(copied) + 1):
        for missing in itertools.combinations(copied, n_missing):
            for pick in take:
                g = per_copy
                for axis in copied:
                    g = pick(g, axis) if axis in missing else g.sum(axis, keepdims=True)
                if _close(g.reshape(analytic.shape), analytic):
                    axes = missing[0] if len(missing) == 1 else missing
                    return (
                        f"this input was broadcast along axis {axes} of the output, but its gradient was not summed "
                        "over it: each copy sends a gradient back (see ops/broadcast.py)"
                    )
    return ""
