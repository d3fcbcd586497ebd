from ops.broadcast import shape_of, unbroadcast
from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, TensorLike, apply


class Maximum(Function):
    """The larger of two operands that broadcast to one shape; NaN if one of them is.

        out = max(a, b)

    Backward.  The larger one moves the result one for one, the other not at all. Where both are equal each gets half,
    as in PyTorch: the middle between what it would get as the larger and as the other one.

        da = dout * (1 if a > b, 1/2 if a = b, else 0)        db = dout * (1 if b > a, 1/2 if a = b, else 0)
    """

    mixes_integers = True

    def forward(self, a, b):                                      # a, b broadcast to (...)
        self.save(a, b)
        return self.xp.maximum(a, b)

    def backward(self, dout):
        xp = self.xp
        a, b = self.saved
        need_a, need_b = self.needs_grad
        shared = xp.where(xp.equal(a, b), dout / 2, dout)
        return (
            unbroadcast(xp.where(xp.less(a, b), 0, shared), shape_of(a)) if need_a else None,
            unbroadcast(xp.where(xp.greater(a, b), 0, shared), shape_of(b)) if need_b else None,
        )


def maximum(a: TensorLike, b: TensorLike) -> Tensor:
    """The larger of a and b, elementwise, with broadcasting."""
    return apply(Maximum, a, b)
