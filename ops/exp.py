from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, apply


class Exp(Function):
    """The exponential function, its own derivative.

        out = e^x        dx = dout * e^x = dout * out
    """

    def forward(self, x):                                         # x (...)
        out = self.xp.exp(x)
        self.save(out)                                            # the array, not the Tensor: no reference cycle
        return out

    def backward(self, dout):
        (out,) = self.saved
        return (dout * out,)


def exp(x: Tensor) -> Tensor:
    """e ** x, elementwise."""
    return apply(Exp, x)
