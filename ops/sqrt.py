from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, apply


class Sqrt(Function):
    """The square root.

        out = sqrt(x)        dx = dout / (2 sqrt(x)) = dout / (2 out)

    At x = 0 the slope is infinite: dx = inf.
    """

    def forward(self, x):                                         # x (...), not negative
        out = self.xp.sqrt(x)
        self.save(out)
        return out

    def backward(self, dout):
        (out,) = self.saved
        return (dout / (2 * out),)


def sqrt(x: Tensor) -> Tensor:
    """The square root, elementwise."""
    return apply(Sqrt, x)
