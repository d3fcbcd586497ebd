"""Lab layernorm_backward: the three paths of x through layer normalization."""

import numpy as np

from tinygrad2.labs.gradients import Use, check_in_the_engine, transposed
from tinygrad2.labs.lab import Lab

LAB = Lab(
    "layernorm_backward", "ops/layernorm.py", "the gradients of layer normalization",
    "dout (..., C) is dL/dout; x (..., C), weight (C,), mean and rstd (..., 1) are what forward has saved. Return dx "
    "(..., C), dweight (C,) and dbias (C,), in this order. The formulas are in the docstring above.",
    (
        "First recompute xhat = (x - mean) * rstd, and g = dout * weight: the gradient at xhat.",
        "x reaches xhat directly, through the mean and through rstd: dx is a sum of three terms, each times rstd.",
        "avg is a mean over the last axis with keepdims=True. dweight and dbias are sums over all other axes: "
        "tuple(range(x.ndim - 1)).",
    ),
)  # fmt: skip


def _use(student, rng, shape, layout=np.asarray, bias=True):
    C = shape[-1]
    inputs = {"x": layout(rng.standard_normal(shape) * 2 + 1), "weight": layout(rng.uniform(0.5, 2, C)),
              "bias": rng.standard_normal(C) if bias else None}  # fmt: skip
    return Use(student.LayerNorm, inputs, rng, layout=layout)


def _check_dx(use):
    x, weight = use.inputs["x"], use.inputs["weight"]
    C = x.shape[-1]
    rstd = 1 / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    xhat, g = (x - x.mean(-1, keepdims=True)) * rstd, use.dout * weight
    along = (g * xhat).mean(-1, keepdims=True)

    def without_weight(dout):
        return rstd * (dout - dout.mean(-1, keepdims=True) - xhat * (dout * xhat).mean(-1, keepdims=True))

    use.check(
        "x",
        sizes={f"{C}, the number of channels": C,
               f"C / (C - 1) = {C / (C - 1):.6g}: avg divides by C, not by C - 1": C / (C - 1)},
        terms={
            "the direct path, rstd * g,": rstd * g,
            "the path through the mean, -rstd * avg(g),": np.broadcast_to(-rstd * g.mean(-1, keepdims=True), x.shape),
            "the path through rstd, -rstd * xhat * avg(g * xhat),": -rstd * xhat * along,
        },
        suspects={
            "dout is used in place of g = dout * weight": without_weight(use.dout),
            "avg(g) stands where avg(g * xhat) belongs, or xhat is left out": rstd * (g - g.mean(-1, keepdims=True)
                - along),
            "x is used in place of xhat": rstd * (g - g.mean(-1, keepdims=True) - x * (g * x).mean(-1, keepdims=True)),
            "the averages go over all elements, and not over each row's channels":
                rstd * (g - g.mean() - xhat * (g * xhat).mean()),
            "the averages go over the rows, axis 0, and not over the channels":
                rstd * (g - g.mean(0, keepdims=True) - xhat * (g * xhat).mean(0, keepdims=True)),
        },
        factors={"rstd": rstd, "weight": weight},
    )  # fmt: skip


def _check_parameters(use):
    x, dout = use.inputs["x"], use.dout
    rows = tuple(range(x.ndim - 1))
    n = x.size // x.shape[-1]
    sizes = {f"{n}, the number of rows": n}
    xhat = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    use.check("weight", sizes=sizes, factors={"weight": use.inputs["weight"]}, suspects={
        "x is used in place of xhat": (dout * x).sum(rows),
        "xhat is left out: that is dbias": dout.sum(rows),
        "x - mean is used without rstd": (dout * (x - x.mean(-1, keepdims=True))).sum(rows),
        "g is used in place of dout": (dout * use.inputs["weight"] * xhat).sum(rows),
    })  # fmt: skip
    if use.inputs["bias"] is not None:
        use.check("bias", sizes=sizes, factors={"weight": use.inputs["weight"]}, suspects={
            "dout * xhat is summed: that is dweight": (dout * xhat).sum(rows),
        })  # fmt: skip


@LAB.case(4, "dx of one matrix (5, 6)")
def _(student, rng):
    _check_dx(_use(student, rng, (5, 6)))


@LAB.case(2, "dweight and dbias of one matrix (5, 6)")
def _(student, rng):
    _check_parameters(_use(student, rng, (5, 6)))


@LAB.case(2, "three and four axes, and one: (2, 3, 7), (2, 1, 3, 5), (6,)")
def _(student, rng):
    for shape in ((2, 3, 7), (2, 1, 3, 5), (6,)):
        use = _use(student, rng, shape)
        _check_dx(use)
        _check_parameters(use)


@LAB.case(1, "x and dout that are not contiguous, and no bias")
def _(student, rng):
    use = _use(student, rng, (4, 3, 6), transposed, bias=False)
    _check_dx(use)
    _check_parameters(use)


@LAB.case(1, "inside a graph, with two uses of the result")
def _(student, rng):
    inputs = {"x": rng.standard_normal((3, 5)), "weight": rng.uniform(0.5, 2, 5), "bias": rng.standard_normal(5)}
    return check_in_the_engine(student.LayerNorm, inputs, rng)
