"""Lab softmax_cross_entropy: the gradient of the loss at the logits."""

import numpy as np

from tinygrad2.labs.diagnose import compare
from tinygrad2.labs.gradients import Use, check_in_the_engine, transposed
from tinygrad2.labs.lab import Lab

LAB = Lab(
    "softmax_cross_entropy", "ops/cross_entropy.py", "the gradient of softmax and cross-entropy together",
    "forward has saved e = exp(logits - max) (N, V), total = e.sum(-1) (N,), the targets t (N,), weight (N,), which is "
    "1/N for a target that counts and 0 for one that is ignored, and the shape of the logits. dout is a number. Return "
    "two gradients: that of the logits, in `shape`, and None for the targets.",
    (
        "The probabilities are e / total[:, None]: nothing has to be exponentiated again.",
        "dlogits = dout * weight * (p - onehot(t)), row by row; weight holds the division by N already.",
        "onehot need not be built: dz[arange(N), t] -= 1 subtracts it, with dz a new array that holds p.",
    ),
)  # fmt: skip


def _check(student, logits, targets, rng, layout=np.asarray):
    use = Use(student.CrossEntropy, {"logits": layout(logits), "targets": targets}, rng, {"ignore_index": -1})
    V, t = logits.shape[-1], targets.reshape(-1)
    z = logits.reshape(-1, V)
    e = np.exp(z - z.max(-1, keepdims=True))
    p, onehot = e / e.sum(-1, keepdims=True), (np.arange(V) == t[:, None]).astype(float)
    counted, N = (t != -1)[:, None], len(t)
    first = np.arange(V) == np.where(t == -1, 0, t)[:, None]
    weight = counted / max(1, counted.sum())

    def whole(dz):
        return (use.dout * dz).reshape(logits.shape)

    suspects = {
        "weight is left out: each row as if it alone were the loss": whole(p - first),
        "p is not divided by the total: e stands where p belongs": whole(weight * (e - onehot)),
        "the division goes by columns: e / total without [:, None]":
            whole(weight * (e / e.sum(-1) - onehot)) if len(z) == V else whole(np.full_like(p, np.inf)),
        "the 1 is subtracted in every row, whatever the target": whole(weight * (p - 1)),
        "the 1 is subtracted in every row at the targets of all rows, dz[:, t]": whole(weight * (p - onehot.any(0))),
        "token t + 1 is taken for t": whole(weight * (p - np.roll(onehot, 1, 1))),
        "token t - 1 is taken for t": whole(weight * (p - np.roll(onehot, -1, 1))),
        "the derivative of softmax is applied to p - onehot, which is the gradient at the logits already":
            whole(weight * p * (p - onehot - (p * (p - onehot)).sum(-1, keepdims=True))),
        "the 1 is subtracted after the rows are weighted, unweighted": whole(weight * p - onehot),
    }  # fmt: skip
    if not counted.all():
        suspects["ignored targets count as token 0"] = whole((p - first) / counted.sum())
        suspects["it is divided by all N targets, the ignored ones too"] = whole(counted * (p - onehot) / N)
    sizes = {f"{int(counted.sum())}, the number of targets": counted.sum(), f"{V}, the size of the vocabulary": V}
    terms = {"the prediction, p,": whole(weight * p), "what was right, -onehot(t),": whole(-weight * onehot)}
    use.check("logits", sizes=sizes, terms=terms, suspects=suspects, factors={"dout": use.dout})


@LAB.case(3, "logits (6, 5), each target once or more")
def _(student, rng):
    _check(student, rng.standard_normal((6, 5)), rng.permutation([0, 1, 2, 3, 4, 1]), rng)


@LAB.case(2, "logits (2, 3, 7): the gradient has their shape")
def _(student, rng):
    _check(student, rng.standard_normal((2, 3, 7)), rng.integers(0, 7, (2, 3)), rng)


@LAB.case(2, "ignored targets count neither in the sum nor in N")
def _(student, rng):
    _check(student, rng.standard_normal((5, 4)), rng.permutation([0, 3, -1, 1, -1]), rng)


@LAB.case(1, "all targets ignored: the gradient is zero")
def _(student, rng):
    use = Use(student.CrossEntropy, {"logits": rng.standard_normal((3, 4)), "targets": np.full(3, -1)}, rng)
    compare("dlogits, all targets ignored,", use.grads["logits"], np.zeros((3, 4)))


@LAB.case(1, "huge logits, and logits that are not contiguous")
def _(student, rng):
    _check(student, rng.standard_normal((4, 5)) + 3000.0 * np.arange(4)[:, None], rng.integers(0, 5, 4), rng)
    _check(student, rng.standard_normal((4, 5)), rng.integers(0, 5, 4), rng, transposed)


@LAB.case(1, "inside a graph, with two uses of the loss")
def _(student, rng):
    inputs = {"logits": rng.standard_normal((4, 5)), "targets": rng.integers(0, 5, 4)}
    return check_in_the_engine(student.CrossEntropy, inputs, rng)
