from typing import Any

from tinygrad2.function import Function
from tinygrad2.spelling import keywords
from tinygrad2.tensor import Tensor, apply


class Mean(Function):
    """The mean over one axis, several, or all: the sum over the N values that meet in one element, divided by N.

        out = 1/N sum over the axes of x

    Backward.  As for the sum, but each value counts only 1/N:

        dx = dout / N, copied along the axes
    """

    def forward(self, x, axis=None, keepdims=False):              # x (...)
        self.save(x.shape, axis, keepdims)
        return x.mean(axis, keepdims=keepdims)

    def backward(self, dout):
        shape, axis, keepdims = self.saved
        xp = self.xp
        N = count(shape, axis)
        if axis is not None and not keepdims:
            dout = xp.expand_dims(dout, axis)                     # the averaged axes come back with size 1
        return (xp.broadcast_to(dout / N, shape),)


def count(shape, axis):
    """Number of values in one mean: count((2, 3, 4), (0, 2)) -> 8."""
    axes = range(len(shape)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    N = 1
    for a in axes:
        N *= shape[a]
    return N


def mean(x: Tensor, axis: int | tuple[int, ...] | None = None, keepdims: bool = False, **also: Any) -> Tensor:
    """The mean over `axis` (int, tuple, or None for all)."""
    return apply(Mean, x, **keywords("mean", also, axis=axis, keepdims=keepdims))
