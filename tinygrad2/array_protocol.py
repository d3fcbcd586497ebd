"""What Python and NumPy see of a Tensor: shape and dtype, conversions to numbers, lists and arrays, NumPy's functions.

    float(loss), f"{loss:.3f}", bool(x), int(n), list(x), 3.0 in x        as for arrays
    np.asarray(x), np.stack([x, y]), np.save(path, x)                     the values, without their graph
    np.exp(x), np.maximum(x, 0), array * x                                Tensors: the op of that name, its gradient
    np.sum(x), np.var(x, axis=0)                                          the method of that name (methods.py)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np

from tinygrad2.backend import Array, device_of, to_host, xp_of
from tinygrad2.halves import is_floating

_T = TypeVar("_T", bound="ArrayProtocol")
_OPS = {  # NumPy's function -> (the op that computes it, its options)
    "add": "add", "subtract": "sub", "multiply": "mul", "divide": "div", "power": "pow", "negative": "neg",
    "matmul": "matmul", "absolute": "abs", "exp": "exp", "log": "log", "sqrt": "sqrt", "tanh": "tanh", "sin": "sin",
    "cos": "cos", "maximum": "maximum", "minimum": "minimum",
}  # fmt: skip
_RELATIONS = {
    "equal": "==", "not_equal": "!=", "less": "<", "less_equal": "<=", "greater": ">", "greater_equal": ">=",
}  # fmt: skip


class ArrayProtocol:
    """A base class of Tensor: what needs its `data` only."""

    data: Array
    requires_grad: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    @property
    def device(self) -> str:
        return device_of(self.data)

    # -- to Python -----------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        grad = ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({np.array2string(self.numpy(), precision=4, threshold=20)}, dtype={self.dtype}{grad})"

    def __format__(self, spec: str) -> str:
        """`f"{loss:.3f}"` formats a Tensor of one element as a number. Raises TypeError for more of them."""
        if self.size == 1 and (spec or self.ndim == 0):
            return format(self.item(), spec)
        if spec:
            raise TypeError(f"a Tensor of shape {self.shape} has no format {spec!r}; use np.array2string(x.numpy())")
        return str(self)

    def item(self) -> Any:
        """The value of a one-element Tensor as a Python number."""
        if self.size != 1:
            raise ValueError(f"item() of a Tensor of shape {self.shape}: only one element is one number; x.tolist()")
        return self.data.item()

    def tolist(self) -> Any:
        """The values as (nested lists of) Python numbers."""
        return self.numpy().tolist()

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ValueError(
                f"a Tensor of shape {self.shape} is neither true nor false: x.any() and x.all() are; len(x) == 0"
            )
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.dtype.kind not in "iub" or self.size != 1:
            raise TypeError(f"only one integer is an index, not a {self.dtype} Tensor of shape {self.shape}")
        return int(self.item())

    def __round__(self, digits: int | None = None) -> Any:
        """`round(loss, 3)`: a Python number."""
        if self.size != 1:
            raise TypeError(f"round() of a Tensor of shape {self.shape}; use np.round(x.numpy(), digits)")
        return round(self.item(), digits)

    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("len() of a Tensor without axes: it is one number")
        return len(self.data)

    def __iter__(self: _T) -> Iterator[_T]:
        if self.ndim == 0:
            raise TypeError("a Tensor without axes cannot be iterated over: it is one number")
        return (self[i] for i in range(len(self)))  # type: ignore[index]

    def __contains__(self, value: Any) -> bool:
        """Is any element equal to `value`? What is no number, as None or a text, is in no Tensor."""
        equal = self == value
        return equal if isinstance(equal, bool) else bool(equal.any())  # type: ignore[attr-defined]

    # -- to NumPy ------------------------------------------------------------------------------------------------------

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array (not a copy if they are one already)."""
        return to_host(self.data)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """For NumPy: `np.asarray(x)`, `np.stack([x, y])`, `np.save(path, x)`, `array[x]`."""
        array = self.numpy()
        moved = array is not self.data or (dtype is not None and array.dtype != dtype)
        if moved and copy is False:
            raise ValueError(f"a {self.dtype} Tensor on {self.device} becomes another array by a copy only")
        if dtype is not None:
            array = array.astype(dtype, copy=False)
        return array.copy() if copy and not moved else array

    def __dlpack__(self, **options: Any) -> Any:
        """For other libraries: `torch.from_dlpack(x)` shares the memory, without the graph."""
        return self.data.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.data.__dlpack_device__()

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """For NumPy: `np.exp(x)`, `array + x`, `np.float64(2) * x`. What is no op is computed without a gradient.

        Raises TypeError where a gradient would be lost, naming the function.
        """
        name = ufunc.__name__
        if method != "__call__":
            raise TypeError(f"np.{name}.{method} takes no Tensor; use a method such as x.sum(), or x.numpy()")
        if not options and name in _OPS:
            return self._run(_OPS[name], *inputs)
        if not options and name in _RELATIONS:
            return self._run("compare", *inputs, relation=_RELATIONS[name])
        if not options and name == "square":
            return self._run("mul", *inputs, *inputs)
        return self._without_gradient(ufunc, inputs, options)

    def _without_gradient(self, ufunc: Any, inputs: Any, options: Any = None) -> Any:
        """A function of NumPy (or CuPy) that is no op; also `array += x`, which writes to the array."""
        options = options or {}
        out = options.get("out", ())
        if any(isinstance(a, ArrayProtocol) for a in out):
            raise TypeError(f"np.{ufunc.__name__}(..., out=Tensor): write x += y or x[...] = y, within no_grad()")
        wanted = any(isinstance(a, ArrayProtocol) and a.requires_grad for a in inputs) and self._is_recording()
        arrays = [a.data if isinstance(a, ArrayProtocol) else a for a in inputs]
        if not (wanted and out):
            results = getattr(xp_of(self.data), ufunc.__name__)(*arrays, **options)
            several = results if isinstance(results, tuple) else (results,)
            if out:
                return results
            if not (wanted and any(is_floating(result.dtype) for result in several)):
                return tuple(map(self._wrap, several)) if isinstance(results, tuple) else self._wrap(results)
        raise TypeError(
            f"np.{ufunc.__name__} would lose the gradient: x.detach() if none is wanted; docs/library.md lists the ops"
        )

    def _run(self, name: str, *inputs: Any, **options: Any) -> Any:
        raise NotImplementedError

    def _wrap(self, array: Array) -> Any:
        raise NotImplementedError

    def _is_recording(self) -> bool:
        raise NotImplementedError
