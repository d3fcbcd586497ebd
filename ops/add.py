from ops.broadcast import shape_of, unbroadcast
from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, TensorLike, apply


class Add(Function):
    """The sum of two operands that broadcast to one shape.

        out = a + b

    Backward.  Each operand moves the result one for one, so each gets dout (summed if it was broadcast):

        da = dout        db = dout
    """

    mixes_integers = True

    def forward(self, a, b):                                      # a, b broadcast to (...)
        self.save(shape_of(a), shape_of(b))
        return a + b

    def backward(self, dout):
        a_shape, b_shape = self.saved
        need_a, need_b = self.needs_grad
        return (
            unbroadcast(dout, a_shape) if need_a else None,
            unbroadcast(dout, b_shape) if need_b else None,
        )


def add(a: TensorLike, b: TensorLike) -> Tensor:
    """a + b with broadcasting."""
    return apply(Add, a, b)
