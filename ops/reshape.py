from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, apply


class Reshape(Function):
    """The same values in the same order under another shape; one size may be -1, "what is left".

        out = x.reshape(shape)        dx = dout.reshape(x.shape)
    """

    only_moves = saves_halves = True

    def forward(self, x, shape):                                  # x (...)
        self.save(x.shape)
        return x.reshape(shape)

    def backward(self, dout):
        (shape,) = self.saved
        return (dout.reshape(shape),)


def reshape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x under another shape."""
    return apply(Reshape, x, shape=shape)
