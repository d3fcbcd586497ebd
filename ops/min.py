from typing import Any

from ops.max import Max
from tinygrad2.function import Function
from tinygrad2.spelling import keywords
from tinygrad2.tensor import Tensor, apply


class Min(Function):
    """The smallest value over one axis, several, or all; NaN if there is one.

        out = min over the axes of x

    Backward.  Only the smallest value moves the result. If n values are equally small, each gets the n-th part, as in
    PyTorch's amin: no order among them decides.

        dx = dout / n where x = out, else 0
    """

    def forward(self, x, axis=None, keepdims=False):              # x (...)
        out = x.min(axis, keepdims=keepdims)
        self.save(x, out, axis, keepdims)
        return out

    backward = Max.backward                                      # only x = out decides, in both


def min(x: Tensor, axis: int | tuple[int, ...] | None = None, keepdims: bool = False, **also: Any) -> Tensor:
    """The smallest value over `axis` (int, tuple, or None for all)."""
    return apply(Min, x, **keywords("min", also, axis=axis, keepdims=keepdims))
