from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, apply


class Transpose(Function):
    """The axes in another order: axis i of the result is axis axes[i] of x. Without axes the order is reversed.

        out = x.transpose(axes)

    Backward.  The inverse permutation sends every gradient back to where its value came from. It is argsort: where
    axes[i] = a, the axis a has gone to position i.

        dx = dout.transpose(argsort(axes))
    """

    only_moves = saves_halves = True

    def forward(self, x, axes=None):                              # x (...)
        axes = tuple(range(x.ndim))[::-1] if axes is None else tuple(a % x.ndim for a in axes)
        self.save(axes)
        return x.transpose(axes)

    def backward(self, dout):
        (axes,) = self.saved
        inverse = sorted(range(len(axes)), key=lambda i: axes[i])  # argsort of a short tuple
        return (dout.transpose(inverse),)


def transpose(x: Tensor, axes: tuple[int, ...] | None = None) -> Tensor:
    """x with its axes in another order."""
    return apply(Transpose, x, axes=axes)
