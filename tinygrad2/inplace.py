"""Updates in place: `p -= lr * p.grad`, `x[0] = 1.0`.

    within no_grad()    the array is written to, and with it whatever shares its memory: views of it, the flat buffers
                        that hold a model's parameters
    elsewhere           `x += y` on a result, or with one, is x = x + y with its gradient (`loss += other_loss`); the
                        name goes on to denote the same Tensor, and its earlier values stay as backward needs them.
                        A leaf that requires a gradient is refused: its update would have to be part of the graph.
                        Without any gradient the array is written to, as in NumPy

What a recorded op has saved of a Tensor that is changed before backward is noticed there (writes.py).
"""

from __future__ import annotations

from typing import Any, TypeVar

from tinygrad2.array_protocol import ArrayProtocol
from tinygrad2.operands import plain_key
from tinygrad2.writes import wrote

_T = TypeVar("_T", bound="InPlace")


class InPlace(ArrayProtocol):
    """A base class of Tensor.

    may_become_result   whether `x += y` may make it the result of an op
    """

    may_become_result = True
    node: Any
    output: int

    def __iadd__(self: _T, other: Any) -> _T:
        return self._update("+=", "add", other)

    def __isub__(self: _T, other: Any) -> _T:
        return self._update("-=", "sub", other)

    def __imul__(self: _T, other: Any) -> _T:
        return self._update("*=", "mul", other)

    def __itruediv__(self: _T, other: Any) -> _T:
        return self._update("/=", "div", other)

    def __ipow__(self: _T, other: Any) -> _T:  # type: ignore[misc]
        return self._update("**=", "pow", other)

    def __imatmul__(self: _T, other: Any) -> _T:
        return self._update("@=", "matmul", other)

    def __setitem__(self, key: Any, value: Any) -> None:
        """`x[key] = value`: raises RuntimeError if a gradient is recorded for either."""
        wanted = self.requires_grad or (isinstance(value, ArrayProtocol) and value.requires_grad)
        if wanted and self._is_recording():
            raise RuntimeError(
                "x[...] = value is not recorded, so its gradient would be lost: write it within no_grad(), or make a "
                "new Tensor by ops.where(mask, value, x) or ops.concatenate"
            )
        value = value.data if isinstance(value, ArrayProtocol) else value
        if isinstance(value, (list, tuple)):
            value = self._wrap(value).data
        self._writable()[plain_key(key, self.data)] = value
        wrote(self.data)

    def fill(self: _T, value: Any) -> _T:
        """All elements set to a number; `fill_` is the same."""
        self[...] = value
        return self

    fill_ = fill

    def zero_(self: _T) -> _T:
        """All elements set to zero."""
        return self.fill(0)

    def _update(self, sign, name, other):
        recording = self._is_recording()
        if recording and self.node is None and (self.requires_grad or not self.may_become_result):
            raise RuntimeError(
                f"x {sign} ... on a parameter, or a leaf that requires a gradient: within `with no_grad():` it changes "
                f"the array; a new Tensor, with its gradient, is x = x {sign[:-1]} ..."
            )
        result = self._run(name, self, other)
        if result.shape != self.shape:
            raise ValueError(f"x {sign} ... makes shape {result.shape} of a Tensor of shape {self.shape}")
        if result.dtype != self.dtype:
            raise TypeError(
                f"x {sign} ... makes {result.dtype} of a Tensor of {self.dtype}; a new one is x = x {sign[:-1]} ..."
            )
        if result.requires_grad:  # recorded: from here on this Tensor is the result
            self.data, self.node, self.output, self.requires_grad = result.data, result.node, result.output, True
            return self
        self._writable()[...] = result.data
        wrote(self.data)
        return self

    def _writable(self):
        """The array, if it can be written to, else ValueError."""
        if not getattr(self.data.flags, "writeable", True):
            raise ValueError(
                "the array of this Tensor is read-only, a view whose elements repeat (x.expand makes such views); copy "
                "it first: x = x.clone()"
            )
        return self.data
