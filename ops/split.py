from tinygrad2.function import Function
from tinygrad2.tensor import apply


class Split(Function):
    """Cut the last axis into equal parts: the packed projection of attention into q, k and v.

        out_i = x[..., i C : (i + 1) C]        for i = 0 .. parts - 1, each a result of its own

    Backward.  Every number of x stands in one part, so the gradients go back side by side:

        dx = concatenate(dout_0, dout_1, ...)
    """

    def forward(self, x, parts):                                  # x (..., parts C)
        C = x.shape[-1] // parts
        return tuple(x[..., i * C : (i + 1) * C] for i in range(parts))   # each (..., C), no copies

    def backward(self, douts):
        return (self.xp.concatenate(douts, axis=-1),)


def split(x, parts):
    """`parts` Tensors (..., C) that share out the last axis of x (..., parts * C).

    Raises ValueError where it does not divide.
    """
    if x.shape[-1] % parts:
        raise ValueError(f"split: {x.shape[-1]} channels do not make {parts} equal parts")
    return apply(Split, x, parts=parts)
