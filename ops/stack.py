from collections.abc import Sequence
from typing import Any

from tinygrad2.function import Function
from tinygrad2.spelling import axis_of
from tinygrad2.tensor import Tensor, TensorLike, apply


class Stack(Function):
    """Inputs of one shape joined along a new axis.

        out[..., i, ...] = x_i

    Backward.  Each input gets the part of dout at its position on that axis.
    """

    mixes_integers = only_moves = saves_halves = True

    def forward(self, *inputs, axis=0):                           # each (...)
        self.save(axis)
        return self.xp.stack(inputs, axis=axis)

    def backward(self, dout):
        (axis,) = self.saved
        dout = self.xp.moveaxis(dout, axis, 0)
        return [dout[i] for i in range(len(dout))]


def stack(inputs: Sequence[TensorLike], axis: int = 0, **also: Any) -> Tensor:
    """Tensors of one shape joined along a new axis, which is number `axis` of the result."""
    return apply(Stack, *inputs, axis=axis_of("stack", also, axis))
