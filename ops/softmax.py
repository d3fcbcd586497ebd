from typing import Any

from tinygrad2.function import Function
from tinygrad2.spelling import axis_of
from tinygrad2.tensor import Tensor, apply


class Softmax(Function):
    """Scores to probabilities along an axis.

        p_i = e^(x_i) / sum over j of e^(x_j)

    Subtracting the same constant from all scores changes nothing (it cancels in the fraction); subtracting the largest
    keeps every exponent <= 0, so nothing overflows. A score of -inf gets probability 0.

    Backward.  x_i raises p_i and lowers all others: dp_i/dx_j = p_i (1[i=j] - p_j). Summed against dout,

        dx_j = sum over i of dout_i p_i (1[i=j] - p_j) = p_j (dout_j - sum over i of dout_i p_i)

    so each score learns how much better its dout is than the average one. The dx of a row sum to zero.
    """

    def forward(self, x, axis=-1):                                # x (..., n, ...)
        e = self.xp.exp(x - x.max(axis, keepdims=True))
        p = e / e.sum(axis, keepdims=True)
        self.save(p, axis)
        return p

    def backward(self, dout):
        p, axis = self.saved
        # lab: begin softmax_backward
        average = (dout * p).sum(axis, keepdims=True)
        return (p * (dout - average),)
        # lab: end softmax_backward


def softmax(x: Tensor, axis: int = -1, **also: Any) -> Tensor:
    """Probabilities along `axis`."""
    return apply(Softmax, x, axis=axis_of("softmax", also, axis))
