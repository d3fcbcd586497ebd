from typing import Any

from tinygrad2.function import Function
from tinygrad2.spelling import axis_of
from tinygrad2.tensor import Tensor, apply


class LogSoftmax(Function, name="log_softmax"):
    """The logarithm of the softmax along an axis, without ever taking the logarithm of a vanishing probability.

        out_i = x_i - logsumexp(x)        logsumexp(x) = max + ln sum over j of e^(x_j - max)

    Backward.  dout_i reaches x_i directly, and every x_j through the logsumexp, whose derivative is p_j = e^(out_j):

        dx_j = dout_j - p_j * sum over i of dout_i
    """

    def forward(self, x, axis=-1):                                # x (..., n, ...)
        shifted = x - x.max(axis, keepdims=True)
        out = shifted - self.xp.log(self.xp.exp(shifted).sum(axis, keepdims=True))
        self.save(out, axis)
        return out

    def backward(self, dout):
        out, axis = self.saved
        return (dout - self.xp.exp(out) * dout.sum(axis, keepdims=True),)


def log_softmax(x: Tensor, axis: int = -1, **also: Any) -> Tensor:
    """Log-probabilities along `axis`."""
    return apply(LogSoftmax, x, axis=axis_of("log_softmax", also, axis))
