from ops.broadcast import unbroadcast
from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, apply


class Expand(Function):
    """Axes of size 1, and new ones in front, repeated to a larger shape; a size of -1 keeps what is there.

        out[i, j] = x[j]        no copy

    Backward.  An element that is used several times gets the sum of their gradients (ops/broadcast.py).
    """

    only_moves = True

    def forward(self, x, shape):                                  # x (...)
        new = len(shape) - x.ndim
        sizes = [x.shape[i - new] if size == -1 and i >= new else size for i, size in enumerate(shape)]
        self.save(x.shape)
        out = self.xp.broadcast_to(x, tuple(sizes))               # read-only
        return x.reshape(sizes) if out.size == x.size else out

    def backward(self, dout):
        (shape,) = self.saved
        return (unbroadcast(dout, shape),)


def expand(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x broadcast to `shape`."""
    return apply(Expand, x, shape=shape)
