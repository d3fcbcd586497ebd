from ops.broadcast import unbroadcast
from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, TensorLike, apply


class Pow(Function):
    """A power, elementwise, with broadcasting. Base and exponent may both be Tensors or scalars.

        out = a^b

    Backward.  In a it is a polynomial, in b an exponential (a^b = e^(b ln a)):

        da = dout * b a^(b-1)        db = dout * a^b ln a

    Two limits are written out, because 0 * inf would give nan: da = 0 if b = 0 (the result is constantly 1),
    and db = 0 if a = 0. For a < 0 the exponent has no gradient over the reals: db = nan.
    """

    mixes_integers = True

    def forward(self, a, b):                                      # a, b broadcast to (...)
        self.save(a, b)
        return a**b

    def backward(self, dout):
        xp = self.xp
        a, b = (xp.asarray(value, dtype=dout.dtype) for value in self.saved)
        need_a, need_b = self.needs_grad
        da = db = None
        if need_a:
            power = xp.where(b == 0, 1, b - 1)                    # any power will do if the factor b is 0
            da = unbroadcast(dout * b * a**power, a.shape)
        if need_b:
            log_a = xp.log(xp.where(a == 0, 1, a))                # ln 1 = 0 if a is 0
            db = unbroadcast(dout * a**b * log_a, b.shape)
        return da, db


def pow(a: TensorLike, b: TensorLike) -> Tensor:
    """a ** b, elementwise, with broadcasting."""
    return apply(Pow, a, b)
