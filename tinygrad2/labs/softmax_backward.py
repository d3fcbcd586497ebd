"""Lab softmax_backward: the gradient through probabilities that sum to one."""

import numpy as np

from tinygrad2.labs.gradients import Use, check_in_the_engine, transposed
from tinygrad2.labs.lab import Lab

LAB = Lab(
    "softmax_backward", "ops/softmax.py", "the gradient of softmax",
    "dout is dL/dp, p the probabilities that forward has saved, axis the axis along which they sum to 1; all of one "
    "shape. Return a tuple of one array: dx.",
    (
        "dp_i/dx_j = p_i (1[i=j] - p_j). No matrix of these derivatives is needed: multiply by dout_i and sum over i.",
        "What is left of the sum is one number per row: the average of dout, weighted with p.",
        "dx = p * (dout - average), with average = (dout * p).sum(axis, keepdims=True).",
    ),
)  # fmt: skip


def _check(student, x, rng, axis=-1, layout=np.asarray):
    use = Use(student.Softmax, {"x": layout(x)}, rng, {"axis": axis}, layout)
    dout, p = use.dout, use.out
    average = (dout * p).sum(axis, keepdims=True)
    n = x.shape[axis]
    other = -1 if axis not in (-1, x.ndim - 1) else 0
    use.check(
        "x",
        sizes={f"{n}, the number of scores in a row": n},
        terms={"the direct term, p * dout,": p * dout, "the average, -p * sum(dout * p),": -p * average},
        suspects={
            "the derivative of each score is taken alone, p (1 - p), as if it moved no other probability":
                p * (1 - p) * dout,
            "dout is summed without its weights p": p * (dout - dout.sum(axis, keepdims=True)),
            "the plain mean of dout is subtracted, not the one weighted with p":
                p * (dout - dout.mean(axis, keepdims=True)),
            "the mean of dout * p is subtracted, not its sum": p * (dout - (dout * p).mean(axis, keepdims=True)),
            "the sum goes over another axis than `axis`": p * (dout - (dout * p).sum(other, keepdims=True)),
            "the sum goes over all rows, not along `axis`": p * (dout - (dout * p).sum()),
            "the gradient of log_softmax is returned": dout - p * dout.sum(axis, keepdims=True),
            "p is missing in front: dout minus its average is returned": dout - average,
            "the sum is weighted with p twice": p * (dout - (dout * p * p).sum(axis, keepdims=True)),
        },
        factors={"p": p},
    )  # fmt: skip


@LAB.case(4, "a matrix (4, 6)")
def _(student, rng):
    _check(student, rng.standard_normal((4, 6)), rng)


@LAB.case(2, "three axes (2, 3, 5), and a vector (7,)")
def _(student, rng):
    _check(student, rng.standard_normal((2, 3, 5)), rng)
    _check(student, rng.standard_normal(7), rng)


@LAB.case(2, "another axis: axis=0 of (5, 3), axis=1 of (2, 4, 3)")
def _(student, rng):
    _check(student, rng.standard_normal((5, 3)), rng, 0)
    _check(student, rng.standard_normal((2, 4, 3)), rng, 1)


@LAB.case(1, "huge scores, and arrays that are not contiguous")
def _(student, rng):
    _check(student, rng.standard_normal((4, 6)) + 5000.0 * np.arange(4)[:, None], rng)
    _check(student, rng.permutation(5.0 * np.arange(-5, 1)) + rng.standard_normal((4, 6)), rng)  # p from 1 to e^-25
    _check(student, rng.standard_normal((4, 3, 5)), rng, layout=transposed)


@LAB.case(1, "inside a graph, with two uses of the result")
def _(student, rng):
    return check_in_the_engine(student.Softmax, {"x": rng.standard_normal((3, 5))}, rng)
