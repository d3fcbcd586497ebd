"""The methods of a Tensor, most of them one op each: names and keywords of NumPy and of PyTorch.

Where the two differ, the docstring says which one is followed. What a Tensor does not have raises an AttributeError
that names what to use (missing.py).
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np

from tinygrad2.array_protocol import ArrayProtocol
from tinygrad2.halves import dtype_named
from tinygrad2.missing import missing_attribute
from tinygrad2.spelling import axis_of, keywords

Axis = int | tuple[int, ...] | None
_T = TypeVar("_T", bound="Methods")


class Methods(ArrayProtocol):
    """A base class of Tensor. Each method runs an op, so its gradient is recorded."""

    def __getattr__(self, name: str) -> Any:
        """Called for names that a Tensor does not have."""
        raise missing_attribute(name)

    # -- elementwise ---------------------------------------------------------------------------------------------------

    def exp(self: _T) -> _T:
        return self._run("exp", self)

    def log(self: _T) -> _T:
        return self._run("log", self)

    def sqrt(self: _T) -> _T:
        return self._run("sqrt", self)

    def abs(self: _T) -> _T:
        return self._run("abs", self)

    def sin(self: _T) -> _T:
        return self._run("sin", self)

    def cos(self: _T) -> _T:
        return self._run("cos", self)

    def tanh(self: _T) -> _T:
        return self._run("tanh", self)

    def sigmoid(self: _T) -> _T:
        return self._run("sigmoid", self)

    def relu(self: _T) -> _T:
        return self._run("relu", self)

    def maximum(self: _T, other: Any) -> _T:
        """The larger of two, elementwise."""
        return self._run("maximum", self, other)

    def minimum(self: _T, other: Any) -> _T:
        """The smaller of two, elementwise."""
        return self._run("minimum", self, other)

    def clip(self: _T, low: Any = None, high: Any = None, **also: Any) -> _T:
        """Values between low and high; `x.clamp(min=0)` is the same."""
        limits = keywords("clip", also, low=low, high=high)
        return self._run("clip", self, limits["low"], limits["high"])

    clamp = clip

    def where(self: _T, condition: Any, other: Any) -> _T:
        """These values where the condition holds, else those of `other` (as in PyTorch)."""
        return self._run("where", condition, self, other)

    def masked_fill(self: _T, mask: Any, value: Any) -> _T:
        """`value` where the mask is True, else these values."""
        return self._run("where", mask, value, self)

    def softmax(self: _T, axis: int = -1, **also: Any) -> _T:
        return self._run("softmax", self, axis=axis_of("softmax", also, axis))

    def log_softmax(self: _T, axis: int = -1, **also: Any) -> _T:
        return self._run("log_softmax", self, axis=axis_of("log_softmax", also, axis))

    # -- reductions ----------------------------------------------------------------------------------------------------

    def sum(self: _T, axis: Axis = None, keepdims: bool = False, **also: Any) -> _T:
        return self._run("sum", self, **keywords("sum", also, axis=axis, keepdims=keepdims))

    def mean(self: _T, axis: Axis = None, keepdims: bool = False, **also: Any) -> _T:
        return self._run("mean", self, **keywords("mean", also, axis=axis, keepdims=keepdims))

    def var(self: _T, axis: Axis = None, *, ddof: int = 1, keepdims: bool = False, **also: Any) -> _T:
        """The variance, with the divisor N - ddof: N - 1 unless you say otherwise, as in PyTorch (np.var(x): N)."""
        return self._run("var", self, **keywords("var", also, axis=axis, ddof=ddof, keepdims=keepdims))

    def std(self: _T, axis: Axis = None, *, ddof: int = 1, keepdims: bool = False, **also: Any) -> _T:
        """The standard deviation, the root of `var`."""
        return self._run("std", self, **keywords("std", also, axis=axis, ddof=ddof, keepdims=keepdims))

    def amax(self: _T, axis: Axis = None, keepdims: bool = False, **also: Any) -> _T:
        """The largest value; if several are largest, the gradient is shared among them."""
        return self._run("max", self, **keywords("amax", also, axis=axis, keepdims=keepdims))

    def amin(self: _T, axis: Axis = None, keepdims: bool = False, **also: Any) -> _T:
        """The smallest value; if several are smallest, the gradient is shared among them."""
        return self._run("min", self, **keywords("amin", also, axis=axis, keepdims=keepdims))

    def max(self: _T, axis: Axis = None, keepdims: bool = False, **also: Any) -> _T:
        """The largest value, as `amax` and as in NumPy. (PyTorch's max(dim=...) returns indices, too.)"""
        _values_only("max", axis, also)
        return self.amax(axis, keepdims, **also)

    def min(self: _T, axis: Axis = None, keepdims: bool = False, **also: Any) -> _T:
        """The smallest value, as `amin` and as in NumPy. (PyTorch's min(dim=...) returns indices, too.)"""
        _values_only("min", axis, also)
        return self.amin(axis, keepdims, **also)

    def argmax(self: _T, axis: int | None = None, keepdims: bool = False, **also: Any) -> _T:
        """The position of the largest value, the first of several; without axis among all values in a row."""
        return self._run("argmax", self, **keywords("argmax", also, axis=axis, keepdims=keepdims))

    def argmin(self: _T, axis: int | None = None, keepdims: bool = False, **also: Any) -> _T:
        """The position of the smallest value, the first of several."""
        return self._run("argmin", self, **keywords("argmin", also, axis=axis, keepdims=keepdims))

    def all(self: _T, axis: Axis = None, keepdims: bool = False, **also: Any) -> _T:
        """Are all values along the axes true (not zero)?"""
        return self._run("all", self, **keywords("all", also, axis=axis, keepdims=keepdims))

    def any(self: _T, axis: Axis = None, keepdims: bool = False, **also: Any) -> _T:
        """Is any value along the axes true (not zero)?"""
        return self._run("any", self, **keywords("any", also, axis=axis, keepdims=keepdims))

    def cumsum(self: _T, axis: int | None = None, **also: Any) -> _T:
        """The running sum along an axis; without axis over all values in a row (as in NumPy)."""
        return self._run("cumsum", self, axis=axis_of("cumsum", also, axis))

    # -- shapes --------------------------------------------------------------------------------------------------------

    def reshape(self: _T, *shape: Any, **also: Any) -> _T:
        """`x.reshape(2, -1)` or `x.reshape((2, -1))`."""
        if "shape" in also and not shape:
            shape = (also.pop("shape"),)
        if also:
            keywords("reshape", also)
        return self._run("reshape", self, shape=_as_tuple(shape))

    view = reshape

    def flatten(self: _T, start_dim: int = 0, end_dim: int = -1) -> _T:
        """The axes from start_dim to end_dim as one; without arguments all values in a row."""
        if self.ndim == 0:
            return self.reshape(1)
        start, end = start_dim % self.ndim, end_dim % self.ndim
        joined = math.prod(self.shape[start : end + 1])
        return self.reshape(*self.shape[:start], joined, *self.shape[end + 1 :])

    def ravel(self: _T) -> _T:
        """All values in a row."""
        return self.reshape(self.size)

    def squeeze(self: _T, axis: Axis = None, **also: Any) -> _T:
        """Without the axes of size 1, all of them or those in `axis`. Raises ValueError for one of another size."""
        axis = axis_of("squeeze", also, axis)
        ones = [i for i, size in enumerate(self.shape) if size == 1] if axis is None else axis
        gone = {i % self.ndim for i in (ones if isinstance(ones, (list, tuple)) else [ones])}
        if any(self.shape[i] != 1 for i in gone):
            raise ValueError(f"squeeze: axis {axis} of a Tensor of shape {self.shape} is not of size 1")
        return self.reshape(tuple(size for i, size in enumerate(self.shape) if i not in gone))

    def unsqueeze(self: _T, dim: int) -> _T:
        """With a new axis of size 1, which is number `dim` of the result. `x[:, None]` is the same for dim=1."""
        position = dim + self.ndim + 1 if dim < 0 else dim
        if not 0 <= position <= self.ndim:
            raise ValueError(f"unsqueeze: there is no place {dim} for an axis in a Tensor of shape {self.shape}")
        return self.reshape(*self.shape[:position], 1, *self.shape[position:])

    def transpose(self: _T, *axes: Any) -> _T:
        """Axis i of the result is axis `axes[i]` of this Tensor (as in NumPy); without axes their order is reversed.

        Raises ValueError for two numbers that would be another call in PyTorch, which swaps them: see `swapaxes`.
        """
        if len(axes) == 2 and (self.ndim != 2 or [axis % 2 for axis in axes] == [0, 1]):
            raise ValueError(
                f"transpose{axes} of a Tensor of shape {self.shape}: here all axes are listed in their new order, as "
                f"in NumPy; to swap two of them, x.swapaxes{axes}"
            )
        axes = _as_tuple(axes)
        return self._run("transpose", self, axes=None if axes in ((), (None,)) else axes)

    def permute(self: _T, *axes: Any) -> _T:
        """The axes in another order."""
        return self._run("transpose", self, axes=_as_tuple(axes))

    def swapaxes(self: _T, axis1: int, axis2: int) -> _T:
        """Two axes exchanged."""
        axes = list(range(self.ndim))
        axes[axis1], axes[axis2] = axes[axis2], axes[axis1]
        return self.permute(axes)

    @property
    def T(self: _T) -> _T:
        return self.transpose()

    def expand(self: _T, *shape: Any) -> _T:
        """Axes of size 1 (and new ones in front) repeated to this shape; -1 keeps a size."""
        return self._run("expand", self, shape=_as_tuple(shape))

    def split(self: _T, size: int | list[int], axis: int = 0, **also: Any) -> tuple[_T, ...]:
        """Parts of `size` along an axis (the last may be smaller), or of the sizes in a list, as in PyTorch."""
        return self._run("split", self, size=size, axis=axis_of("split", also, axis))

    def chunk(self: _T, chunks: int, axis: int = 0, **also: Any) -> tuple[_T, ...]:
        """At most `chunks` parts of equal size (the last may be smaller), as in PyTorch."""
        axis = axis_of("chunk", also, axis)
        if chunks < 1:
            raise ValueError(f"chunk: {chunks} parts; there is at least 1")
        return self.split(max(1, -(-self.shape[axis] // chunks)), axis)

    # -- copies and dtypes ---------------------------------------------------------------------------------------------

    def clone(self: _T) -> _T:
        """A copy in new memory, through which the gradient passes."""
        return self._run("clone", self)

    copy = clone

    def astype(self: _T, dtype: Any, **also: Any) -> _T:
        """The values in another dtype, through which the gradient passes (as long as it is a float)."""
        keywords("astype", also, copy=True)
        return self._run("cast", self, dtype=dtype_named(dtype))


def _values_only(name, axis, also):
    """Raise TypeError for calls that return something else in PyTorch: pairs, or the larger of two Tensors."""
    if isinstance(axis, (ArrayProtocol, np.ndarray)):
        raise TypeError(f"x.{name}(axis) reduces over axes; elementwise: x.{name}imum(y)")
    if "dim" in also:
        raise TypeError(
            f"x.{name}(dim=...) returns values and indices in PyTorch; here x.a{name}(dim=...) or x.{name}(axis=...) "
            f"returns the values, x.arg{name}(dim=...) the indices"
        )


def _as_tuple(args):
    return tuple(args[0]) if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
