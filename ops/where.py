from typing import Any

from ops.broadcast import shape_of, unbroadcast
from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, TensorLike, apply


class Where(Function):
    """One of two operands, element by element; all three broadcast to one shape.

        out = a where condition holds, else b

    Backward.  Each element of the result is one of a or of b, and the gradient goes there:

        da = dout where condition holds, else 0        db = 0 where condition holds, else dout
    """

    mixes_integers = True

    def forward(self, condition, a, b):                           # broadcast to (...)
        xp = self.xp
        condition = xp.asarray(condition) != 0
        self.save(condition, shape_of(a), shape_of(b))
        return xp.where(condition, a, b)

    def backward(self, dout):
        condition, a_shape, b_shape = self.saved
        xp = self.xp
        _, need_a, need_b = self.needs_grad
        return (
            None,
            unbroadcast(xp.where(condition, dout, 0), a_shape) if need_a else None,
            unbroadcast(xp.where(condition, 0, dout), b_shape) if need_b else None,
        )


def where(condition: Any, a: TensorLike, b: TensorLike) -> Tensor:
    """a where the condition (booleans) holds, else b."""
    return apply(Where, condition, a, b)


def masked_fill(x: TensorLike, mask: Any, value: TensorLike) -> Tensor:
    """`value` where the mask (booleans) is True, else x."""
    return apply(Where, mask, value, x)
