from collections.abc import Sequence
from typing import Any

from tinygrad2.function import Function
from tinygrad2.spelling import axis_of
from tinygrad2.tensor import Tensor, TensorLike, apply


class Concatenate(Function):
    """Inputs joined one after the other along an axis; all other sizes must agree.

        out = [x_1 | x_2 | ... | x_n]

    Backward.  Each input gets the part of dout at the positions it went to.
    """

    mixes_integers = only_moves = saves_halves = True

    def forward(self, *inputs, axis=0):                           # each (..., n_i, ...)
        self.save(axis, [x.shape[axis] for x in inputs])
        return self.xp.concatenate(inputs, axis=axis)

    def backward(self, dout):
        axis, sizes = self.saved
        parts, start = [], 0
        for size in sizes:
            key = [slice(None)] * dout.ndim
            key[axis] = slice(start, start + size)
            parts.append(dout[tuple(key)])
            start += size
        return parts


def concatenate(inputs: Sequence[TensorLike], axis: int = 0, **also: Any) -> Tensor:
    """A list of Tensors joined along `axis`."""
    return apply(Concatenate, *inputs, axis=axis_of("concatenate", also, axis))
