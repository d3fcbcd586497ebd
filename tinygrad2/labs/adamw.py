"""Lab adamw: moving averages, the correction of their start, and a decay outside of them."""

import numpy as np

from tinygrad2.labs.diagnose import compare
from tinygrad2.labs.lab import Lab

LAB = Lab(
    "adamw", "tinygrad2/optim.py", "one step of AdamW",
    "Update p, m and v in place; all are flat arrays (n,), and so is the gradient g, which stays as it is. t is 1 in "
    "the first step. The formulas are at the top of the file. Nothing is returned.",
    (
        "In place means m += ..., or m[...] = ...: `m = ...` only gives another array the name m, and the caller's "
        "stays.",
        "m += (1 - beta1) * (g - m) is the moving average; v the same with g * g and beta2. Then mhat and vhat, which "
        "are not stored: the next step needs m and v themselves.",
        "eps is added after the root. The decay is no part of the gradient: p -= lr * (mhat / (sqrt(vhat) + eps) + "
        "weight_decay * p).",
    ),
)  # fmt: skip


def _step(student, rng, t=1, weight_decay=0.0, eps=1e-8, size=1.0, n=7, dtype=np.float64):
    """(before, after, knobs) of one step; before and after have p, g, m, v."""
    start = t > 1
    before = {"p": rng.standard_normal(n), "g": size * rng.standard_normal(n),
              "m": size * rng.standard_normal(n) * start, "v": size**2 * rng.uniform(0.1, 2, n) * start}  # fmt: skip
    before = {name: array.astype(dtype) for name, array in before.items()}
    lr, beta1, beta2 = (float(rng.uniform(*bounds)) for bounds in ((0.01, 0.1), (0.8, 0.93), (0.95, 0.999)))
    knobs = dict(lr=lr, beta1=beta1, beta2=beta2)
    after = {name: array.copy() for name, array in before.items()}
    student._update_block(*after.values(), t, *knobs.values(), eps, weight_decay)
    return before, after, knobs | dict(t=t, eps=eps, weight_decay=weight_decay)


def _moments(g, m, v, beta1, beta2, **_):
    return beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g


def _check_moments(before, after, knobs, rtol=1e-6):
    p, g, m, v = before.values()
    beta1, beta2 = knobs["beta1"], knobs["beta2"]
    compare("g after the step", after["g"], g, suspects={"g was changed in place; it is the caller's": after["g"]})
    new_m, new_v = _moments(g, m, v, beta1, beta2)
    unchanged = "it was not changed in place: `x = ...` makes another array, x[...] = ... writes into this one"
    bare = "g is added to beta1 m without 1 - beta1"
    compare("m after the step", after["m"], new_m, rtol, suspects={
        unchanged: m, "beta1 and 1 - beta1 are swapped": beta1 * g + (1 - beta1) * m,
        "mhat is stored in m": new_m / (1 - beta1 ** knobs["t"]), bare: beta1 * m + g,
        "beta2 is used in place of beta1": beta2 * m + (1 - beta2) * g,
    })  # fmt: skip
    compare("v after the step", after["v"], new_v, rtol, suspects={
        unchanged: v, "g stands where g * g belongs": beta2 * v + (1 - beta2) * g,
        "beta2 and 1 - beta2 are swapped": beta2 * g * g + (1 - beta2) * v,
        "vhat is stored in v": new_v / (1 - beta2 ** knobs["t"]), "beta1 is used in place of beta2":
            beta1 * v + (1 - beta1) * g * g, "the deviation from m is squared, as for a variance":
            beta2 * v + (1 - beta2) * (g - new_m) ** 2,
    })  # fmt: skip


def _update(p, g, m, v, t, lr, beta1, beta2, eps, weight_decay, mode=""):
    """p after a step, or what it is after a typical mistake."""
    g = g + weight_decay * p if mode == "coupled" else g
    new_m, new_v = _moments(g, m, v, beta1, beta2)
    t = t + {"from 0": -1, "from 2": 1}.get(mode, 0)
    with np.errstate(all="ignore"):
        mhat = new_m if mode in ("no m", "neither") else new_m / (1 - beta1**t)
        vhat = new_v if mode in ("no v", "neither") else new_v / (1 - beta2**t)
        if mode == "once":
            mhat, vhat = new_m / (1 - beta1), new_v / (1 - beta2)
        root = np.sqrt(vhat) + eps
        root = {"eps inside": np.sqrt(vhat + eps), "no root": vhat + eps, "no eps": np.sqrt(vhat),
                "eps 1e-8": np.sqrt(vhat) + 1e-8, "largest": np.maximum(np.sqrt(vhat), eps),
                }.get(mode, root)  # fmt: skip
        if mode == "old":
            mhat, root = m / (1 - beta1**t), np.sqrt(v / (1 - beta2**t)) + eps
        adaptive = {"g": g, "sign": -mhat}.get(mode, mhat) / root
        if mode == "after":
            return (p - lr * adaptive) * (1 - lr * weight_decay)
        if mode == "decay without lr":
            return p - lr * adaptive - weight_decay * p
        decay = {"coupled": 0, "none": 0, "grows": -1, "lr twice": lr}.get(mode, 1)
        return p - lr * (adaptive + decay * weight_decay * p)


_MISTAKES = {
    "neither m nor v is corrected for starting at zero": "neither",
    "m is not corrected for starting at zero": "no m",
    "v is not corrected for starting at zero": "no v",
    "the correction has beta and not beta**t: it is the same in every step": "once",
    "t is counted from 0 in the correction": "from 0",
    "t + 1 stands where t belongs: t is 1 in the first step": "from 2",
    "eps is added inside the root": "eps inside",
    "eps is left out": "no eps",
    "eps is 1e-8, whatever is given": "eps 1e-8",
    "the larger of the root and eps is taken, not their sum": "largest",
    "the root of vhat is missing": "no root",
    "g stands where mhat belongs": "g",
    "the step goes up the slope: the sign is wrong": "sign",
    "the decay is part of the gradient (Adam with L2, not AdamW)": "coupled",
    "the weight decay is missing": "none",
    "the decay has the wrong sign: weights grow": "grows",
    "the decay is not multiplied by lr": "decay without lr",
    "the decay is multiplied by lr twice": "lr twice",
    "m and v are updated after p: the step uses those of before": "old",
    "the decay is applied to what the adaptive step has changed already": "after",
}  # fmt: skip


def _check_p(before, after, knobs, rtol=1e-6):
    expected = _update(**before, **knobs) - before["p"]
    suspects = {text: _update(**before, **knobs, mode=mode) - before["p"] for text, mode in _MISTAKES.items()}
    suspects = {text: array for text, array in suspects.items() if not np.allclose(array, expected, 1e-5, 0)}
    unchanged = {"p was not changed: p = p - ... makes another array, p -= ... writes into this one (or m and v are "
                 "still zero, because they are updated after p)": np.zeros_like(expected)}  # fmt: skip
    compare("the change of p", after["p"] - before["p"], expected, rtol, sizes={f"lr = {knobs['lr']:.4g}": knobs["lr"]},
            suspects=unchanged | suspects)  # fmt: skip


@LAB.case(2, "m and v, in the first step and later")
def _(student, rng):
    for t in (1, 5):
        _check_moments(*_step(student, rng, t))


@LAB.case(2, "p in the first step")
def _(student, rng):
    _check_p(*_step(student, rng))


@LAB.case(2, "p later: t = 2, 10, 1000")
def _(student, rng):
    for t in (2, 10, 1000):
        _check_p(*_step(student, rng, t))


@LAB.case(2, "weight decay")
def _(student, rng):
    _check_p(*_step(student, rng, 3, weight_decay=float(rng.uniform(0.1, 2))))


@LAB.case(1, "eps counts where gradients are tiny, and a gradient of zero is no division by zero")
def _(student, rng):
    _check_p(*_step(student, rng, 1, eps=1e-3, size=1e-3))
    before, after, knobs = _step(student, rng, 1, size=0.0)
    compare("the change of p where g = 0", after["p"] - before["p"], np.zeros(7))


@LAB.case(1, "ten steps in float32, by the loop over blocks")
def _(student, rng):
    n = 50
    p, m, v = rng.standard_normal(n).astype(np.float32), np.zeros(n, np.float32), np.zeros(n, np.float32)
    expected, own_m, own_v = (array.astype(np.float64) for array in (p, m, v))
    for t in range(1, 11):
        g = rng.standard_normal(n).astype(np.float32)
        student.adam_update(p, g, m, v, 0.5, t, 0.01, 0.9, 0.99, 1e-8, 0.1)
        knobs = dict(lr=0.01, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1)
        expected = _update(expected, 0.5 * g.astype(np.float64), own_m, own_v, t, **knobs)
        own_m, own_v = _moments(0.5 * g.astype(np.float64), own_m, own_v, 0.9, 0.99)
    compare("p after ten steps in float32", p, expected, rtol=1e-4)
