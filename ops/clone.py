from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, apply


class Clone(Function):
    """The same values in new memory.

        out = x        dx = dout
    """

    only_moves = saves_halves = True

    def forward(self, x):                                         # x (...)
        return x.copy()

    def backward(self, dout):
        return (dout,)


def clone(x: Tensor) -> Tensor:
    """A copy of x, through which the gradient passes."""
    return apply(Clone, x)
