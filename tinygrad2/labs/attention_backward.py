"""Lab attention_backward: three formulas in reverse order."""

import math

import numpy as np

from ops.dropout import keep_mask
from tinygrad2.labs.gradients import Use, check_in_the_engine, transposed
from tinygrad2.labs.lab import Lab

LAB = Lab(
    "attention_backward", "ops/attention.py", "the gradients of causal attention",
    "dout (..., Tq, hs) is dL/dout; q (..., Tq, hs), k and v (..., Tk, hs) are the inputs, w (..., Tq, Tk) the "
    "weights after softmax, scale 1/sqrt(hs). self._drop(x, *dropout) multiplies x (..., Tq, Tk) by the same dropout "
    "mask as in forward. Return dq, dk, dv, in this order and in the shapes of q, k, v.",
    (
        "Go backwards: out = (w keep) v is a matrix product, w = softmax(s), s = q kT / sqrt(hs) again a product.",
        "dv = (w keep)T dout; the gradient at w is (dout vT) keep. A masked score has w = 0, so its ds is 0 by itself.",
        "Softmax: ds = w * (dw - (dw * w).sum(-1, keepdims=True)). Then dq = ds k and dk = dsT q, both times scale.",
    ),
)  # fmt: skip


def _check(student, rng, shape, Tk=None, p=0.0, layout=np.asarray, size=1.0):
    *batch, Tq, hs = shape
    Tk = Tk or Tq
    inputs = {"q": layout(size * rng.standard_normal(shape)), "k": layout(rng.standard_normal((*batch, Tk, hs))),
              "v": layout(rng.standard_normal((*batch, Tk, hs)))}  # fmt: skip
    key, first = int(rng.integers(1 << 30)), 3
    use = Use(student.Attention, inputs, rng, {"p": p, "key": key, "first": first}, layout)
    (q, k, v), dout, scale = inputs.values(), use.dout, 1 / math.sqrt(hs)

    def t(x):
        return x.swapaxes(-1, -2)

    s = np.where(np.arange(Tk) > np.arange(Tk - Tq, Tk)[:, None], -np.inf, q @ t(k) * scale)
    e = np.exp(s - s.max(-1, keepdims=True))
    w = e / e.sum(-1, keepdims=True)
    keep = keep_mask(np, w.shape, p, key, first, w.dtype) if p else np.ones_like(w)
    dw = dout @ t(v) * keep
    average = (dw * w).sum(-1, keepdims=True)
    ds = w * (dw - average)
    right = {"dq": ds @ k * scale, "dk": t(ds) @ q * scale, "dv": t(w * keep) @ dout}
    dw_of_k = dout @ t(k) * keep
    wrong_ds = {
        "the softmax is left out: dw is used as ds": dw,
        "each score is taken alone, w (1 - w) dw": w * (1 - w) * dw,
        "the average is not weighted with w": w * (dw - dw.sum(-1, keepdims=True)),
        "the mean over the keys is subtracted, not the sum of dw * w": w * (dw - (dw * w).mean(-1, keepdims=True)),
        "k is used in place of v in dw": w * (dw_of_k - (dw_of_k * w).sum(-1, keepdims=True)),
        "the sum goes over everything, and not over the keys": w * (dw - (dw * w).sum()),
        "the sum goes over the queries, axis -2, and not over the keys": w * (dw - (dw * w).sum(-2, keepdims=True)),
    }
    if p:
        wk = w * keep
        wrong_ds["w keep is used in place of w in the softmax"] = wk * (dw - (dw * wk).sum(-1, keepdims=True))
        wrong_ds["the dropout mask is missing in dw"] = w * (dout @ t(v) - (dout @ t(v) * w).sum(-1, keepdims=True))

    def traces(name, product):
        others = {f"it is {other}, returned in the place of {name}": array for other, array in right.items()
                  if other != name and array.shape == right[name].shape}  # fmt: skip
        suspects = others | {text: product(d) for text, d in wrong_ds.items()}
        sizes = {f"sqrt(hs) = {math.sqrt(hs):.6g}": math.sqrt(hs),
                 f"sqrt(hs / Tk) = {math.sqrt(hs / Tk):.6g}: scale has the size of a head, hs, and not Tk":
                     math.sqrt(hs / Tk)}  # fmt: skip
        return dict(sizes=sizes, suspects=suspects, terms={
            "the direct term of the softmax, w * dw,": product(w * dw),
            "the average in the softmax, -w * sum(dw * w),": product(-w * average)})  # fmt: skip

    of_q, of_k = traces("dq", lambda d: d @ k * scale), traces("dk", lambda d: t(d) @ q * scale)
    if Tq == Tk:
        of_q["suspects"] |= {"q is used where k belongs": ds @ q * scale, "ds is transposed": t(ds) @ k * scale}
        of_k["suspects"]["k is used where q belongs"] = t(ds) @ k * scale
    use.check("q", **of_q)
    if Tq == Tk:
        of_k["suspects"]["ds is not transposed"] = ds @ q * scale
    use.check("k", **of_k)
    suspects = {f"it is {name}, returned in the place of dv": right[name] for name in ("dq", "dk")
                if right[name].shape == right["dv"].shape}  # fmt: skip
    if Tq == Tk:
        suspects["the weights are not transposed: w dout in place of wT dout"] = (w * keep) @ dout
    if p:
        suspects["the dropout mask is missing: w in place of w keep"] = t(w) @ dout
    use.check("v", suspects=suspects)


@LAB.case(4, "one head: q, k, v (5, 4)")
def _(student, rng):
    _check(student, rng, (5, 4))


@LAB.case(2, "sequences and heads: (2, 2, 3, 2)")
def _(student, rng):
    _check(student, rng, (2, 2, 3, 2))


@LAB.case(1, "the last 2 queries of 5 keys")
def _(student, rng):
    _check(student, rng, (2, 3), Tk=5)


@LAB.case(2, "with dropout")
def _(student, rng):
    _check(student, rng, (2, 4, 3), p=0.4)


@LAB.case(1, "huge scores, arrays that are not contiguous, and inside a graph")
def _(student, rng):
    _check(student, rng, (3, 2), size=50.0)
    _check(student, rng, (2, 3, 2), layout=transposed)
    return check_in_the_engine(student.Attention, {name: rng.standard_normal((3, 2)) for name in "qkv"}, rng)
