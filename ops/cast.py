from typing import Any

from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, apply


class Cast(Function):
    """The same values in another dtype, rounded to what it can hold.

        out = x in `dtype`        dx = dout in the dtype of x

    Of integers there is no gradient.
    """

    sets_dtype = only_moves = saves_halves = True

    def forward(self, x, dtype):                                  # x (...)
        self.save(x.dtype)
        return x.astype(dtype)

    def backward(self, dout):
        (dtype,) = self.saved
        return (dout.astype(dtype),)


def cast(x: Tensor, dtype: Any) -> Tensor:
    """x in another dtype, such as "float64"."""
    return apply(Cast, x, dtype=dtype)
