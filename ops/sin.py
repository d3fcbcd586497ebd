from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, apply


class Sin(Function):
    """The sine.

        out = sin x        dx = dout * cos x
    """

    def forward(self, x):                                         # x (...)
        self.save(x)
        return self.xp.sin(x)

    def backward(self, dout):
        (x,) = self.saved
        return (dout * self.xp.cos(x),)


def sin(x: Tensor) -> Tensor:
    """sin x, elementwise."""
    return apply(Sin, x)
