from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, apply


class Cos(Function):
    """The cosine.

        out = cos x        dx = -dout * sin x
    """

    def forward(self, x):                                         # x (...)
        self.save(x)
        return self.xp.cos(x)

    def backward(self, dout):
        (x,) = self.saved
        return (-dout * self.xp.sin(x),)


def cos(x: Tensor) -> Tensor:
    """cos x, elementwise."""
    return apply(Cos, x)
