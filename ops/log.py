from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, apply


class Log(Function):
    """The natural logarithm.

        out = ln x        dx = dout / x
    """

    def forward(self, x):                                         # x (...), positive
        self.save(x)
        return self.xp.log(x)

    def backward(self, dout):
        (x,) = self.saved
        return (dout / x,)


def log(x: Tensor) -> Tensor:
    """ln x, elementwise."""
    return apply(Log, x)
