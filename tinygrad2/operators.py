"""The operators of a Tensor: each is one op.

    x + y, x - y, x * y, x / y, x ** y, x @ y, -x, x[key]       arithmetic and indexing, with gradients
    x == y, x < y, ...                                          booleans; masks combine by & | ^ ~
    x // y, x % y                                               for Tensors without gradient

The other operand may be a Tensor, an array or a number, on either side. Updates such as `x += y` are in inplace.py.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from tinygrad2.array_protocol import ArrayProtocol
from tinygrad2.backend import is_array
from tinygrad2.operands import plain_key

_T = TypeVar("_T", bound="Operators")


class Operators(ArrayProtocol):
    """A base class of Tensor."""

    def _arithmetic(self, name, a, b):
        if a is None or b is None:
            return NotImplemented  # Python's message: unsupported operand type(s) for +: 'Tensor' and 'NoneType'
        return self._run(name, a, b)

    def __add__(self: _T, other: Any) -> _T:
        return self._arithmetic("add", self, other)

    def __radd__(self: _T, other: Any) -> _T:
        return self._arithmetic("add", other, self)

    def __sub__(self: _T, other: Any) -> _T:
        return self._arithmetic("sub", self, other)

    def __rsub__(self: _T, other: Any) -> _T:
        return self._arithmetic("sub", other, self)

    def __mul__(self: _T, other: Any) -> _T:
        return self._arithmetic("mul", self, other)

    def __rmul__(self: _T, other: Any) -> _T:
        return self._arithmetic("mul", other, self)

    def __truediv__(self: _T, other: Any) -> _T:
        return self._arithmetic("div", self, other)

    def __rtruediv__(self: _T, other: Any) -> _T:
        return self._arithmetic("div", other, self)

    def __pow__(self: _T, other: Any) -> _T:
        return self._arithmetic("pow", self, other)

    def __rpow__(self: _T, other: Any) -> _T:
        return self._arithmetic("pow", other, self)

    def __matmul__(self: _T, other: Any) -> _T:
        return self._arithmetic("matmul", self, other)

    def __rmatmul__(self: _T, other: Any) -> _T:
        return self._arithmetic("matmul", other, self)

    def __floordiv__(self: _T, other: Any) -> _T:
        return self._without_gradient(np.floor_divide, (self, other))

    def __rfloordiv__(self: _T, other: Any) -> _T:
        return self._without_gradient(np.floor_divide, (other, self))

    def __mod__(self: _T, other: Any) -> _T:
        return self._without_gradient(np.remainder, (self, other))

    def __rmod__(self: _T, other: Any) -> _T:
        return self._without_gradient(np.remainder, (other, self))

    def __neg__(self: _T) -> _T:
        return self._run("neg", self)

    def __pos__(self: _T) -> _T:
        return self

    def __abs__(self: _T) -> _T:
        return self._run("abs", self)

    def __getitem__(self: _T, key: Any) -> _T:
        return self._run("index", self, key=plain_key(key, self.data))

    # -- comparisons: booleans, without a gradient ---------------------------------------------------------------------

    __hash__ = object.__hash__  # Tensors stay keys of dicts, each its own

    def __eq__(self, other: Any) -> Any:
        return self._compare(other, "==")

    def __ne__(self, other: Any) -> Any:
        return self._compare(other, "!=")

    def __lt__(self: _T, other: Any) -> _T:
        return self._compare(other, "<")

    def __le__(self: _T, other: Any) -> _T:
        return self._compare(other, "<=")

    def __gt__(self: _T, other: Any) -> _T:
        return self._compare(other, ">")

    def __ge__(self: _T, other: Any) -> _T:
        return self._compare(other, ">=")

    def _compare(self, other, relation):
        if is_array(other) or isinstance(other, (ArrayProtocol, int, float, np.generic, list, tuple)):
            return self._run("compare", self, other, relation=relation)
        return NotImplemented  # Python then answers == and != itself: None, a string, ... are other things

    def __and__(self: _T, other: Any) -> _T:
        return self._run("logical", self, other, relation="&")

    def __or__(self: _T, other: Any) -> _T:
        return self._run("logical", self, other, relation="|")

    def __xor__(self: _T, other: Any) -> _T:
        return self._run("logical", self, other, relation="^")

    __rand__, __ror__, __rxor__ = __and__, __or__, __xor__

    def __invert__(self: _T) -> _T:
        return self._run("logical", self, True if self.dtype.kind == "b" else -1, relation="^")
