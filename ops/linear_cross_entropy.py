from typing import Any

from ops.cross_entropy import CrossEntropy
from ops.embedding import as_ids
from ops.products import multiply
from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, apply


class LinearCrossEntropy(Function, name="linear_cross_entropy"):
    """The head and its loss, fused: how surprised is softmax(x weightT) by the right answers?

        logits = x weightT        loss = -1/N sum over n of ln softmax(logits[n])[target_n]

    The weight is stored (V, C), one row per token, as an embedding table is. In training the logits themselves
    are not needed, and they are the largest array of a GPT (V is 50,257). As one op they need not outlive the loss, nor
    exist all at once.

    Backward.  The chain of two ops: dlogits = dout (p - onehot(target)) / N by ops/cross_entropy.py, and then, as for
    every matrix product,

        dx = dlogits weight        dweight = dlogitsT x
    """

    def forward(self, x, weight, targets, ignore_index=-1):       # x (..., C), weight (V, C), targets (...)
        rows = x.reshape(-1, x.shape[-1])                         # (N, C)
        loss = CrossEntropy(self.xp, [any(self.needs_grad)])
        out = loss.forward(multiply(self, rows, weight.T), targets.reshape(-1), ignore_index)
        self.save(x, weight, loss)
        return out                                                # ()

    def backward(self, dout):
        x, weight, loss = self.saved
        dlogits, _ = loss.backward(dout)                          # (N, V)
        rows = x.reshape(-1, x.shape[-1])
        return multiply(self, dlogits, weight).reshape(x.shape), multiply(self, dlogits.T, rows), None


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Any, ignore_index: int = -1) -> Tensor:
    """Mean negative log-likelihood of targets (...) under the logits x @ weight.T; x (..., C), weight (V, C).

    Raises ValueError if the shapes do not match, and IndexError for a target outside the vocabulary that is not
    ignore_index.
    """
    targets = as_ids(targets, weight, 0, ignore_index)
    return apply(LinearCrossEntropy, x, weight, targets, ignore_index=ignore_index)
