from typing import Any

from tinygrad2.function import Function
from tinygrad2.spelling import keywords
from tinygrad2.tensor import Tensor, apply


class Max(Function):
    """The largest value over one axis, several, or all; NaN if there is one.

        out = max over the axes of x

    Backward.  Only the largest value moves the result. If n values are equally large, each gets the n-th part, as in
    PyTorch's amax: no order among them decides.

        dx = dout / n where x = out, else 0
    """

    def forward(self, x, axis=None, keepdims=False):              # x (...)
        out = x.max(axis, keepdims=keepdims)
        self.save(x, out, axis, keepdims)
        return out

    def backward(self, dout):
        x, out, axis, keepdims = self.saved
        xp = self.xp
        if axis is not None and not keepdims:
            out, dout = xp.expand_dims(out, axis), xp.expand_dims(dout, axis)
        chosen = (x == out).astype(dout.dtype)
        return (chosen * (dout / chosen.sum(axis, keepdims=True)).astype(dout.dtype, copy=False),)


def max(x: Tensor, axis: int | tuple[int, ...] | None = None, keepdims: bool = False, **also: Any) -> Tensor:
    """The largest value over `axis` (int, tuple, or None for all)."""
    return apply(Max, x, **keywords("max", also, axis=axis, keepdims=keepdims))
