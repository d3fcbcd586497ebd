from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, apply


class Sigmoid(Function):
    """The logistic function: a smooth step from 0 to 1.

        out = 1 / (1 + e^-x) = e^x / (1 + e^x)

    The first form is used for x >= 0, the second for x < 0: then no exponent is positive, and nothing overflows.

    Backward.  d out/dx = e^-x / (1 + e^-x)^2, and e^-x / (1 + e^-x) = 1 - out:

        dx = dout * out * (1 - out)
    """

    def forward(self, x):                                         # x (...)
        xp = self.xp
        e = xp.exp(-xp.abs(x))                                      # in 0 .. 1
        out = xp.where(x >= 0, 1.0, e) / (1 + e)
        self.save(out)
        return out

    def backward(self, dout):
        (out,) = self.saved
        return (dout * out * (1 - out),)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x), elementwise."""
    return apply(Sigmoid, x)
