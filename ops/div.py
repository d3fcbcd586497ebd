from ops.broadcast import shape_of, unbroadcast
from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, TensorLike, apply


class Div(Function):
    """The elementwise quotient of two operands that broadcast to one shape.

        out = a / b

    Backward.  d(a b^-1)/da = b^-1 and d(a b^-1)/db = -a b^-2:

        da = dout / b        db = -dout * a / b^2
    """

    mixes_integers = True

    def forward(self, a, b):                                      # a, b broadcast to (...)
        self.save(a, b)
        return a / b

    def backward(self, dout):
        a, b = self.saved
        need_a, need_b = self.needs_grad
        return (
            unbroadcast(dout / b, shape_of(a)) if need_a else None,
            unbroadcast(-dout * a / (b * b), shape_of(b)) if need_b else None,
        )


def div(a: TensorLike, b: TensorLike) -> Tensor:
    """a / b, elementwise, with broadcasting."""
    return apply(Div, a, b)
