from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, apply


class ReLU(Function):
    """The rectified linear unit: what is negative becomes zero.

        out = max(x, 0)        dx = dout where x > 0, else 0

    At x = 0, where it has no derivative, dx = 0, as in PyTorch.
    """

    def forward(self, x):                                         # x (...)
        self.save(x)
        return self.xp.maximum(x, 0)

    def backward(self, dout):
        (x,) = self.saved
        return (self.xp.where(x > 0, dout, 0),)


def relu(x: Tensor) -> Tensor:
    """max(x, 0), elementwise."""
    return apply(ReLU, x)
