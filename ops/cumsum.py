from typing import Any

from tinygrad2.function import Function
from tinygrad2.spelling import axis_of
from tinygrad2.tensor import Tensor, apply


class CumSum(Function):
    """The running sum along an axis; without axis over all values in a row, as in NumPy.

        out_i = x_1 + ... + x_i

    Backward.  x_j is part of every out_i from i = j on, so it gets the sum of their gradients: the running sum of dout
    from the other end.

        dx_j = dout_j + ... + dout_n
    """

    def forward(self, x, axis=None):                              # x (..., n, ...)
        self.save(x.shape, axis)
        return self.xp.cumsum(x, axis=axis)

    def backward(self, dout):
        shape, axis = self.saved
        xp, along = self.xp, 0 if axis is None else axis
        dx = xp.flip(xp.cumsum(xp.flip(dout, along), axis=along), along)
        return (dx.reshape(shape),)


def cumsum(x: Tensor, axis: int | None = None, **also: Any) -> Tensor:
    """The running sum along `axis` (None: of all values in a row)."""
    return apply(CumSum, x, axis=axis_of("cumsum", also, axis))
