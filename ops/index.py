from typing import Any

from tinygrad2.function import Function
from tinygrad2.halves import is_half
from tinygrad2.operands import plain_key
from tinygrad2.tensor import Tensor, apply


class Index(Function):
    """Indexing as in NumPy: integers, slices, ..., None, and arrays of integers or booleans.

        out = x[key]

    Backward.  What was taken gets its gradient, the rest gets zero. An array of integers may take the same element
    twice; both gradients belong to it, so they are added, never just written:

        dx = 0,  then  dx[key] += dout
    """

    only_moves = saves_halves = True

    def forward(self, x, key):                                    # x (...)
        self.save(x.shape, key)
        return x[key]

    def backward(self, dout):
        shape, key = self.saved
        if _takes_once(key):
            dx = self.xp.zeros(shape, dtype=dout.dtype)
            dx[key] = dout
            return (dx,)
        dx = self.xp.zeros(shape, dtype=self.xp.float32 if is_half(dout.dtype) else dout.dtype)
        self.xp.add.at(dx, key, dout.astype(dx.dtype, copy=False))    # a sum, so in float32
        return (dx.astype(dout.dtype, copy=False),)


def _takes_once(key):
    """True if the key takes each element at most once: integers, slices, ..., None, or a mask alone."""
    if getattr(getattr(key, "dtype", None), "kind", "") == "b":
        return True
    parts = key if isinstance(key, tuple) else (key,)
    return all(part is None or part is Ellipsis or type(part) in (int, slice) for part in parts)


def index(x: Tensor, key: Any) -> Tensor:
    """x[key]."""
    return apply(Index, x, key=plain_key(key, x.data))
