from typing import Any

from ops.mean import count
from tinygrad2.function import Function
from tinygrad2.spelling import keywords
from tinygrad2.tensor import Tensor, apply


class Var(Function):
    """The variance over one axis, several, or all: the mean square distance of N values from their mean m.

        out = 1/(N - ddof) sum over the axes of (x - m)^2

    With ddof = 1 it estimates that of the distribution from which the values were drawn, as m was fitted to them.

    Backward.  A value counts in its own distance, and in m; through m it changes all distances alike, which cancels
    since they sum to zero:

        dx = dout * 2 (x - m) / (N - ddof)
    """

    def forward(self, x, axis=None, ddof=1, keepdims=False):      # x (...)
        distance = x - x.mean(axis, keepdims=True)
        divisor = degrees_of_freedom(x.shape, axis, ddof)
        self.save(distance, divisor, axis, keepdims)
        return (distance * distance).sum(axis, keepdims=keepdims) / divisor

    def backward(self, dout):
        distance, divisor, axis, keepdims = self.saved
        if axis is not None and not keepdims:
            dout = self.xp.expand_dims(dout, axis)
        return (dout * (2 / divisor) * distance,)


def degrees_of_freedom(shape, axis, ddof):
    """N - ddof for the N values of an array of this shape that meet in one. Raises ValueError if it is not positive."""
    N = count(shape, axis)
    if N <= ddof:
        raise ValueError(f"the variance of {N} value(s) with ddof={ddof} divides by {N - ddof}; use ddof=0")
    return N - ddof


def var(x: Tensor, axis: int | tuple[int, ...] | None = None, *, ddof: int = 1, keepdims: bool = False,
        **also: Any) -> Tensor:  # fmt: skip
    """The variance over `axis`, with the divisor N - ddof (also `correction`, `unbiased`)."""
    return apply(Var, x, **keywords("var", also, axis=axis, ddof=ddof, keepdims=keepdims))
