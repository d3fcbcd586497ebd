"""Lab matmul_backward: the gradients of a matrix product."""

import numpy as np

from tinygrad2.labs.gradients import Use, check_in_the_engine, transposed
from tinygrad2.labs.lab import Lab

LAB = Lab(
    "matmul_backward", "ops/matmul.py", "the gradients of a matrix product",
    "dout (..., n, m) is dL/dout, a (..., n, k) and b (..., k, m) the two matrices; vectors have become matrices in "
    "the lines above. need_a and need_b say which gradient is wanted. Set da to the gradient of a, in the shape "
    "a_shape, and db to that of b, in the shape b_shape. The axes in front broadcast like those of an addition: "
    "unbroadcast(gradient, shape) undoes that.",
    (
        "The shapes alone decide: (n, m) and (k, m) can only give (n, k) as dout bT.",
        "Transpose the last two axes only, x.swapaxes(-1, -2): .T would reverse the axes of the batch as well.",
        "If a has shape (3, 4) and b (5, 4, 2), then dout bT has shape (5, 3, 4): five gradients to be summed by "
        "unbroadcast(..., a.shape). At the end .reshape(a_shape), for vectors.",
    ),
)  # fmt: skip


def _t(x):
    return x.swapaxes(-1, -2)


def _check(student, rng, a_shape, b_shape, layout=np.asarray):
    inputs = {"a": layout(rng.standard_normal(a_shape)), "b": layout(rng.standard_normal(b_shape))}
    use = Use(student.MatMul, inputs, rng, layout=layout if len(a_shape) > 1 < len(b_shape) else np.asarray)
    a, b, dout = inputs["a"], inputs["b"], use.dout
    of_a, of_b, sizes = {}, {}, {}
    if a.ndim > 1 < b.ndim:
        n, k, m = *a.shape[-2:], b.shape[-1]
        sizes = {f"{k}, the length of the sums of a b": k, f"{n}, the rows of a": n, f"{m}, the columns of b": m}
        if n == k == m and a.ndim == b.ndim:
            of_a = {"b is not transposed: dout b": dout @ b, "the order is the other one: bT dout": _t(b) @ dout,
                    "it is the gradient of b": _t(a) @ dout}  # fmt: skip
            of_b = {"a is not transposed: a dout": a @ dout, "the order is the other one: dout aT": dout @ _t(a),
                    "it is the gradient of a": dout @ _t(b)}  # fmt: skip
        copies = dout.size // (n * m)
        for x, full, suspects in ((a, lambda: dout @ _t(b), of_a), (b, lambda: _t(a) @ dout, of_b)):
            if x.ndim == 2 < dout.ndim:
                each = full().reshape(copies, *x.shape)
                suspects["the gradient of the first copy is taken, not the sum over the batch"] = each[0]
                suspects["the gradient of the last copy is taken, not the sum over the batch"] = each[-1]
                suspects["it is the mean over the batch, not the sum"] = each.mean(0)
    use.check("a", sizes=sizes, suspects=of_a)
    use.check("b", sizes=sizes, suspects=of_b)


@LAB.case(2, "square matrices (4, 4) (4, 4)")
def _(student, rng):
    _check(student, rng, (4, 4), (4, 4))


@LAB.case(2, "odd shapes: (3, 5) (5, 2), (1, 4) (4, 1)")
def _(student, rng):
    _check(student, rng, (3, 5), (5, 2))
    _check(student, rng, (1, 4), (4, 1))


@LAB.case(2, "a batch: (2, 3, 4) (2, 4, 5), (2, 3, 4, 2) (2, 3, 2, 5)")
def _(student, rng):
    _check(student, rng, (2, 3, 4), (2, 4, 5))
    _check(student, rng, (2, 3, 4, 2), (2, 3, 2, 5))


@LAB.case(2, "a batch that broadcasts: (3, 4) (5, 4, 2), (2, 1, 3, 4) (5, 4, 2)")
def _(student, rng):
    _check(student, rng, (3, 4), (5, 4, 2))
    _check(student, rng, (5, 2, 4), (4, 3))
    _check(student, rng, (2, 1, 3, 4), (5, 4, 2))


@LAB.case(1, "vectors: (4,) (4, 3), (3, 4) (4,), (4,) (4,)")
def _(student, rng):
    _check(student, rng, (4,), (4, 3))
    _check(student, rng, (3, 4), (4,))
    _check(student, rng, (4,), (4,))
    _check(student, rng, (2, 3, 4), (4,))


@LAB.case(1, "arrays that are not contiguous, and the engine")
def _(student, rng):
    _check(student, rng, (3, 4, 5), (3, 5, 2), transposed)
    inputs = {"a": rng.standard_normal((3, 4)), "b": rng.standard_normal((4, 2))}
    return check_in_the_engine(student.MatMul, inputs, rng)
