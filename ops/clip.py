from typing import Any

from ops.broadcast import shape_of, unbroadcast
from tinygrad2.function import Function
from tinygrad2.spelling import keywords
from tinygrad2.tensor import Tensor, TensorLike, apply


class Clip(Function):
    """Values held between two limits, either of which may be left out.

        out = min(max(x, low), high)

    Backward.  Where x is between the limits, or on one, it moves the result one for one; elsewhere a limit does. (So in
    PyTorch; if low > high, the result is high.)

        dx = dout where low <= x <= high        dlow = dout where x < low < high        dhigh = dout where x > high
    """

    mixes_integers = True

    def forward(self, x, low=None, high=None):                    # x, low, high broadcast to (...)
        xp = self.xp
        self.save(x, low, high)
        out = x if low is None else xp.maximum(x, low)
        out = out if high is None else xp.minimum(out, high)
        return out.copy() if out is x else out

    def backward(self, dout):
        x, low, high = self.saved
        xp = self.xp
        below = False if low is None else xp.less(x, low)
        above = False if high is None else xp.greater(x, high)
        crossed = False if low is None or high is None else low >= high
        _, need_low, need_high = (*self.needs_grad, False, False)[:3]
        dx = xp.where(xp.logical_or(below, above), 0, dout)
        return (
            unbroadcast(dx, shape_of(x)),
            unbroadcast(xp.where(below & xp.logical_not(crossed), dout, 0), shape_of(low)) if need_low else None,
            unbroadcast(xp.where(above | crossed, dout, 0), shape_of(high)) if need_high else None,
        )[: len(self.needs_grad)]


def clip(x: Tensor, low: TensorLike | None = None, high: TensorLike | None = None, **also: Any) -> Tensor:
    """x held between `low` and `high`, numbers or arrays (also min, max)."""
    limits = keywords("clip", also, low=low, high=high)
    return apply(Clip, x, limits["low"], limits["high"])
