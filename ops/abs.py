from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, apply


class Abs(Function):
    """The absolute value.

        out = |x|        dx = dout * sign(x)

    At x = 0, where it has no derivative, dx = 0, the middle between its slopes -1 and 1.
    """

    def forward(self, x):                                         # x (...)
        self.save(x)
        return self.xp.abs(x)

    def backward(self, dout):
        (x,) = self.saved
        return (dout * self.xp.sign(x),)


def abs(x: Tensor) -> Tensor:
    """|x|, elementwise."""
    return apply(Abs, x)
