"""Lab unbroadcast: the gradient of an operand that was broadcast."""

import numpy as np

from tinygrad2.labs.diagnose import compare
from tinygrad2.labs.gradients import check_dtype
from tinygrad2.labs.lab import Lab, Wrong

LAB = Lab(
    "unbroadcast", "ops/broadcast.py", "the gradient of an operand that was broadcast",
    "Return dout, summed down to `shape`. Axes that are new in front are summed and go away; axes of size 1 that were "
    "copied are summed and stay with size 1. `shape` may be (), and dout may have the right shape already.",
    (
        "Write down for b of shape (3,) and a result of shape (2, 3) which elements of the result b[0] has gone into.",
        "There are two kinds of copied axes: those that the operand did not have, and those where it had size 1.",
        "dout.sum(axes) takes axes away; with keepdims=True they stay with size 1. Do the new axes first: then the "
        "axes of dout and of shape have the same numbers.",
    ),
)  # fmt: skip


def _check(student, rng, dout_shape, shape):
    dout = rng.standard_normal(dout_shape)
    before = dout.copy()
    found = student.unbroadcast(dout, shape)
    if not np.array_equal(dout, before):
        raise Wrong("dout was changed in place: it may be the gradient of another operand as well")
    # The definition: the expected gradient by a loop over all elements, each sent to where it was copied from.
    expected = np.zeros(shape)
    for index in np.ndindex(dout_shape):
        own = index[len(dout_shape) - len(shape) :]
        expected[tuple(0 if n == 1 else i for i, n in zip(own, shape))] += dout[index]
    copied = tuple(axis for axis in range(dout.ndim) if axis < dout.ndim - len(shape) or
                   shape[axis - dout.ndim + len(shape)] == 1)  # fmt: skip
    copies = dout.size // max(1, expected.size)
    suspects = {
        "the first copy is taken instead of the sum over all copies":
            np.take(dout, [0], copied[0]).sum(copied, keepdims=True).reshape(shape) if copied else dout,
        "only one copy is taken": dout[tuple(0 if axis in copied else slice(None) for axis in range(dout.ndim))]
            .reshape(shape),
    }  # fmt: skip
    compare(f"the gradient for shape {shape} of dout {dout_shape}", found, expected,
            sizes={f"{copies}, the number of copies": copies}, suspects=suspects)  # fmt: skip


@LAB.case(1, "nothing was broadcast")
def _(student, rng):
    _check(student, rng, (4, 3), (4, 3))


@LAB.case(2, "a new axis in front: (5,) -> (3, 5), and two of them")
def _(student, rng):
    _check(student, rng, (3, 5), (5,))
    _check(student, rng, (2, 3, 5), (5,))


@LAB.case(3, "an axis of size 1: (4, 1) -> (4, 3), (1, 3) -> (4, 3)")
def _(student, rng):
    _check(student, rng, (4, 3), (4, 1))
    _check(student, rng, (4, 3), (1, 3))
    _check(student, rng, (2, 4, 3), (2, 1, 3))
    _check(student, rng, (2, 2), (2, 1))


@LAB.case(2, "both at once: (1, 3) -> (2, 4, 3), (5, 1, 1) -> (2, 5, 4, 3)")
def _(student, rng):
    _check(student, rng, (2, 4, 3), (1, 3))
    _check(student, rng, (2, 5, 4, 3), (5, 1, 1))


@LAB.case(1, "a scalar: () -> (4, 3)")
def _(student, rng):
    _check(student, rng, (4, 3), ())


@LAB.case(1, "an axis of size 1 that was not copied: (1, 3) -> (1, 3) and (1, 1) -> (1, 4), and the dtype")
def _(student, rng):
    _check(student, rng, (1, 3), (1, 3))
    _check(student, rng, (1, 4), (1, 1))
    return check_dtype(lambda dtype: {"gradient": (student.unbroadcast(np.ones((2, 1, 3), dtype), (1, 3)), dtype)})
