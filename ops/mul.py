from ops.broadcast import shape_of, unbroadcast
from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, TensorLike, apply


class Mul(Function):
    """The elementwise product of two operands that broadcast to one shape.

        out = a * b

    Backward.  Move a by a little, and the result moves b times as much:

        da = dout * b        db = dout * a
    """

    mixes_integers = True

    def forward(self, a, b):                                      # a, b broadcast to (...)
        self.save(a, b)
        return a * b

    def backward(self, dout):
        a, b = self.saved
        need_a, need_b = self.needs_grad
        return (
            unbroadcast(dout * b, shape_of(a)) if need_a else None,
            unbroadcast(dout * a, shape_of(b)) if need_b else None,
        )


def mul(a: TensorLike, b: TensorLike) -> Tensor:
    """a * b, elementwise, with broadcasting."""
    return apply(Mul, a, b)
