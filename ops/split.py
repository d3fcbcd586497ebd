from typing import Any

from tinygrad2.function import Function
from tinygrad2.spelling import axis_of
from tinygrad2.tensor import Tensor, apply


class Split(Function):
    """Parts one after the other along an axis: of one size (the last may be smaller), or of the sizes in a list.

        out_1 | out_2 | ... | out_n = x        several results, no copies

    Backward.  Every element of x is in exactly one part: the gradients are joined as the parts were cut.
    """

    only_moves = saves_halves = True

    def forward(self, x, size, axis=0):                           # x (..., n, ...)
        n = x.shape[axis]
        if isinstance(size, int) and size < 1:
            raise ValueError(f"split: parts of size {size}; the size of a part is at least 1")
        sizes = list(size) if isinstance(size, (list, tuple)) else [size] * (n // size) + [n % size] * (n % size > 0)
        if sum(sizes) != n or min(sizes, default=0) < 0:
            raise ValueError(f"split: parts of sizes {sizes} do not make up axis {axis} of shape {x.shape}")
        self.save(axis)
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        lead = (slice(None),) * (axis % x.ndim)
        return tuple(x[(*lead, slice(end - size, end))] for end, size in zip(ends, sizes))

    def backward(self, douts):
        (axis,) = self.saved
        return (self.xp.concatenate(douts, axis=axis),)


def split(x: Tensor, size: int | list[int], axis: int = 0, **also: Any) -> tuple[Tensor, ...]:
    """Parts of `size` along `axis`, or of the sizes in a list (as in PyTorch)."""
    return apply(Split, x, size=size, axis=axis_of("split", also, axis))
