from typing import Any

from tinygrad2.function import Function
from tinygrad2.spelling import keywords
from tinygrad2.tensor import Tensor, apply


class Sum(Function):
    """The sum over one axis, several, or all.

        out = sum over the axes of x

    Backward.  Every summand moves the sum one for one, so each gets the dout of the sum it went into: the gradient
    of a sum is a broadcast, as the gradient of a broadcast is a sum.

        dx = dout, copied along the axes
    """

    def forward(self, x, axis=None, keepdims=False):              # x (...)
        self.save(x.shape, axis, keepdims)
        return x.sum(axis, keepdims=keepdims)

    def backward(self, dout):
        shape, axis, keepdims = self.saved
        xp = self.xp
        if axis is not None and not keepdims:
            dout = xp.expand_dims(dout, axis)                     # the summed axes come back with size 1
        return (xp.broadcast_to(dout, shape),)


def sum(x: Tensor, axis: int | tuple[int, ...] | None = None, keepdims: bool = False, **also: Any) -> Tensor:
    """The sum over `axis` (int, tuple, or None for all)."""
    return apply(Sum, x, **keywords("sum", also, axis=axis, keepdims=keepdims))
