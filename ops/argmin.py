from typing import Any

from tinygrad2.function import Function
from tinygrad2.spelling import keywords
from tinygrad2.tensor import Tensor, apply


class ArgMin(Function):
    """The position of the smallest value along an axis, the first if several are equal; without axis the position among
    all values in a row.

        out = the smallest i for which x_i is smallest

    An integer has no gradient.
    """

    def forward(self, x, axis=None, keepdims=False):              # x (...)
        out = x.argmin(axis)
        if keepdims:
            out = out.reshape((1,) * x.ndim) if axis is None else self.xp.expand_dims(out, axis)
        return out


def argmin(x: Tensor, axis: int | None = None, keepdims: bool = False, **also: Any) -> Tensor:
    """The position of the smallest value along `axis`, integers."""
    return apply(ArgMin, x, **keywords("argmin", also, axis=axis, keepdims=keepdims))
