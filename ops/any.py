import typing

from tinygrad2.function import Function
from tinygrad2.spelling import keywords
from tinygrad2.tensor import Tensor, apply


class Any(Function):
    """Is any value along the axes true? A number is true if it is not zero.

        out = some x_i along the axes is true

    A boolean has no gradient.
    """

    def forward(self, x, axis=None, keepdims=False):              # x (...)
        return x.any(axis, keepdims=keepdims)


def any(x: Tensor, axis: int | tuple[int, ...] | None = None, keepdims: bool = False, **also: typing.Any) -> Tensor:
    """Is any value along the axes true? Booleans."""
    return apply(Any, x, **keywords("any", also, axis=axis, keepdims=keepdims))
