from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, apply


class Neg(Function):
    """The sign turned.

        out = -x        dx = -dout
    """

    def forward(self, x):                                         # x (...)
        return -x

    def backward(self, dout):
        return (-dout,)


def neg(x: Tensor) -> Tensor:
    """-x."""
    return apply(Neg, x)
