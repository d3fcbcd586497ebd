from typing import Any

from ops.embedding import as_ids, check_ids
from tinygrad2.backend import device_of
from tinygrad2.function import Function
from tinygrad2.tensor import Tensor, apply


class CrossEntropy(Function, name="cross_entropy"):
    """The mean surprise at the right answers: minus the log-probability of each target under softmax(logits).

        p = softmax(logits)        loss = -1/N sum over n of ln p[n, target_n]

    Fused with the softmax (ops/log_softmax.py), so that no small probability is ever rounded to zero first:

        ln p[n, t] = logits[n, t] - logsumexp(logits[n])

    For a model that knows nothing every token has probability 1/V, so its loss is ln V. Targets equal to ignore_index
    count neither in the sum nor in N; if all are, the loss is 0.

    Backward.  Of the two terms the first has derivative 1 at the target, the second is logsumexp, whose derivative is
    the softmax. All the Jacobians of softmax and logarithm have cancelled to

        dlogits = dout * (p - onehot(target)) / N

    what was predicted minus what was right.
    """

    def forward(self, logits, targets, ignore_index=-1):          # logits (..., V), targets (...) integers
        xp = self.xp
        V = logits.shape[-1]
        if targets.shape != logits.shape[:-1]:
            raise ValueError(f"cross_entropy: targets of shape {targets.shape} for logits of shape {logits.shape}")
        z, t = logits.reshape(-1, V), targets.reshape(-1)         # (N, V), (N,)
        counted = t != ignore_index                               # (N,)
        if device_of(t) == "cpu":
            check_ids(t[counted], V)
        t = xp.where(counted, t, 0)                               # any id will do if nothing is counted
        weight = counted.astype(z.dtype)
        weight = weight / xp.maximum(weight.sum(), 1.0)           # (N,)  1/N if counted, else 0
        shifted = z - z.max(-1, keepdims=True)                    # (N, V)
        e = xp.exp(shifted)                                       # (N, V)
        total = e.sum(-1)                                         # (N,)
        logp = shifted[xp.arange(len(t)), t] - xp.log(total)      # (N,)
        self.save(e, total, t, weight, logits.shape)
        return -(logp * weight).sum()

    def backward(self, dout):
        e, total, t, weight, shape = self.saved
        # lab: begin softmax_cross_entropy
        dz = e / total[:, None]                                   # (N, V)  p
        dz[self.xp.arange(len(t)), t] -= 1                        # p - onehot
        dz *= (dout * weight)[:, None]
        return dz.reshape(shape), None
        # lab: end softmax_cross_entropy


def cross_entropy(logits: Tensor, targets: Any, ignore_index: int = -1) -> Tensor:
    """Mean negative log-likelihood of targets (...) under logits (..., V); a 0-d Tensor, in nats per token.

    Raises ValueError if the shapes do not match, and IndexError for a target outside the vocabulary that is not
    ignore_index.
    """
    targets = as_ids(targets, logits, -1, ignore_index)
    return apply(CrossEntropy, logits, targets, ignore_index=ignore_index)
