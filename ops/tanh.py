from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, apply


class Tanh(Function):
    """The hyperbolic tangent: a smooth step from -1 to 1.

        out = tanh x = (e^x - e^-x) / (e^x + e^-x)

    Backward.  By the rule for quotients d tanh(x)/dx = 1 - tanh(x)^2, so the result is all it needs:

        dx = dout * (1 - out^2)
    """

    def forward(self, x):                                         # x (...)
        out = self.xp.tanh(x)
        self.save(out)
        return out

    def backward(self, dout):
        (out,) = self.saved
        return (dout * (1 - out * out),)


def tanh(x: Tensor) -> Tensor:
    """tanh x, elementwise."""
    return apply(Tanh, x)
