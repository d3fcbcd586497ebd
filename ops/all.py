from typing import Any

from tinygrad2.function import Function
from tinygrad2.spelling import keywords
from tinygrad2.tensor import Tensor, apply


class All(Function):
    """Are all values along the axes true? A number is true if it is not zero.

        out = every x_i along the axes is true

    A boolean has no gradient.
    """

    def forward(self, x, axis=None, keepdims=False):              # x (...)
        return x.all(axis, keepdims=keepdims)


def all(x: Tensor, axis: int | tuple[int, ...] | None = None, keepdims: bool = False, **also: Any) -> Tensor:
    """Are all values along the axes true? Booleans."""
    return apply(All, x, **keywords("all", also, axis=axis, keepdims=keepdims))
