from typing import Any

from ops.var import degrees_of_freedom
from tinygrad2.function import Function
from tinygrad2.spelling import keywords
from tinygrad2.tensor import Tensor, apply


class Std(Function):
    """The standard deviation over one axis, several, or all: the root of the variance (ops/var.py).

        out = sqrt( 1/(N - ddof) sum over the axes of (x - m)^2 )

    Backward.  The root brings 1 / (2 out), the variance 2 (x - m) / (N - ddof):

        dx = dout * (x - m) / ((N - ddof) out)

    and 0 where all values are equal, as in PyTorch: there the root has no derivative, and x - m is zero.
    """

    def forward(self, x, axis=None, ddof=1, keepdims=False):      # x (...)
        xp = self.xp
        distance = x - x.mean(axis, keepdims=True)
        divisor = degrees_of_freedom(x.shape, axis, ddof)
        out = xp.sqrt((distance * distance).sum(axis, keepdims=keepdims) / divisor)
        self.save(distance, divisor, out, axis, keepdims)
        return out

    def backward(self, dout):
        distance, divisor, out, axis, keepdims = self.saved
        xp = self.xp
        factor = dout / (divisor * xp.where(out == 0, 1, out))
        if axis is not None and not keepdims:
            factor = xp.expand_dims(factor, axis)
        return (factor * distance,)


def std(x: Tensor, axis: int | tuple[int, ...] | None = None, *, ddof: int = 1, keepdims: bool = False,
        **also: Any) -> Tensor:  # fmt: skip
    """The standard deviation over `axis`, with the divisor N - ddof (also `correction`, `unbiased`)."""
    return apply(Std, x, **keywords("std", also, axis=axis, ddof=ddof, keepdims=keepdims))
