"""Lab cosine_schedule: the learning rate of each step."""

import numpy as np

from tinygrad2.labs.diagnose import compare
from tinygrad2.labs.lab import Lab, Wrong

LAB = Lab(
    "cosine_schedule", "tinygrad2/optim.py", "the learning rate of each step: warmup, cosine and others",
    "Return the learning rate of `step` (0, 1, ..., total - 1), a float. In the first `warmup` steps it rises: peak "
    "(step + 1) / warmup. Then x goes from 0 at step `warmup` to 1 at step `total`, and stays there; the docstring "
    "says what each schedule makes of x. For wsd, x is 0 until the last `decay` steps (which begin after the warmup "
    "at the earliest). Raise ValueError for another schedule.",
    (
        "Do the warmup first: if step < warmup, the schedule does not matter.",
        "x = (step - warmup) / (total - warmup), kept within 0 and 1; mind total = warmup. For wsd the start is not "
        "warmup, but max(warmup, total - decay).",
        "cosine: (1 + cos(pi x)) / 2 is 1 at the start and 0 at the end; it is the share of (peak - final).",
    ),
)  # fmt: skip


def _curve(student, schedule, peak, final, warmup, total, decay=0, steps=None):
    steps = range(total) if steps is None else steps
    return np.array([student.learning_rate(int(step), schedule, peak, final, warmup, total, decay) for step in steps])


def _draw(rng):
    peak, warmup, rest = float(rng.uniform(0.1, 1)), int(rng.integers(3, 8)), int(rng.integers(9, 20))
    return peak, peak * float(rng.uniform(0.05, 0.3)), warmup, warmup + rest


@LAB.case(2, "warmup, with every schedule")
def _(student, rng):
    peak, final, warmup, total = _draw(rng)
    steps = np.arange(warmup)
    right = peak * (steps + 1) / warmup
    for schedule in ("constant", "linear", "cosine", "wsd"):
        found = _curve(student, schedule, peak, final, warmup, total, 3, steps)
        compare(f"warmup of {warmup} steps, {schedule}: the learning rate", found, right, suspects={
            "the first step has a learning rate of 0, so it is lost: step + 1": peak * steps / warmup,
            "the warmup begins at `final`": final + (peak - final) * (steps + 1) / warmup,
            "it reaches the peak one step late": peak * (steps + 1) / (warmup + 1),
            "there is no warmup: the peak": np.full(warmup, peak),
        })  # fmt: skip


@LAB.case(4, "cosine after the warmup")
def _(student, rng):
    for warmup_too in (True, False):
        peak, final, warmup, total = _draw(rng)
        warmup = warmup if warmup_too else 0
        steps = np.arange(warmup, total)

        def cosine(x, low=final, high=peak):
            return low + 0.5 * (1 + np.cos(np.pi * x)) * (high - low)

        x = (steps - warmup) / (total - warmup)
        suspects = {
            "x is step / total: the warmup is not taken off": cosine(steps / total),
            "x reaches 1 in the last step, total - 1; it does so at total":
                cosine((steps - warmup) / (total - warmup - 1)),
            "it ends at 0 and not at `final`": cosine(x, 0.0),
            "the curve runs upwards: 1 - cos": cosine(1 - x),
            "the angle goes to pi / 2, not to pi": final + 0.5 * (1 + np.cos(np.pi * x / 2)) * (peak - final),
            "it is a quarter of a cosine, cos(pi x / 2)": final + np.cos(np.pi * x / 2) * (peak - final),
            "the angle goes to 2 pi": final + 0.5 * (1 + np.cos(2 * np.pi * x)) * (peak - final),
            "1 + cos is not halved": final + (1 + np.cos(np.pi * x)) * (peak - final),
            "`final` is added to the whole curve, whose height is then peak and not peak - final":
                final + 0.5 * (1 + np.cos(np.pi * x)) * peak,
            "the angle is in degrees, or pi is missing": final + 0.5 * (1 + np.cos(x)) * (peak - final),
            "it is a straight line": peak + x * (final - peak),
        }  # fmt: skip
        if not warmup:
            del suspects["x is step / total: the warmup is not taken off"]
        found = _curve(student, "cosine", peak, final, warmup, total, 0, steps)
        compare(f"the learning rate from step {warmup} on, cosine,", found, cosine(x), suspects=suspects)


@LAB.case(1, "constant and linear")
def _(student, rng):
    peak, final, warmup, total = _draw(rng)
    steps = np.arange(warmup, total)
    found = _curve(student, "constant", peak, final, warmup, total, 0, steps)
    compare("the learning rate after the warmup, constant,", found, np.full(len(steps), peak))
    found = _curve(student, "linear", peak, final, warmup, total, 0, steps)
    compare("the learning rate after the warmup, linear,", found,
            peak + (steps - warmup) / (total - warmup) * (final - peak),
            suspects={"it runs to 0 and not to `final`": peak * (1 - (steps - warmup) / (total - warmup))})  # fmt: skip


@LAB.case(2, "wsd: the peak, and a straight line over the last `decay` steps")
def _(student, rng):
    peak, final, warmup, total = _draw(rng)
    steps = np.arange(warmup, total)
    for decay in (5, total):                                      # of more steps than there are after the warmup
        start = max(warmup, total - decay)
        x = np.maximum(0, steps - start) / (total - start)
        suspects = {"the line begins right after the warmup": (steps - warmup) / (total - warmup),
                    "the decay begins before the end of the warmup": np.clip((steps - total + decay) / decay, 0, 1)}
        suspects = {text: peak + y * (final - peak) for text, y in suspects.items() if (y != x).any()}
        found = _curve(student, "wsd", peak, final, warmup, total, decay, steps)
        what = f"the learning rate after the warmup, wsd with decay {decay} of {total},"
        compare(what, found, peak + x * (final - peak), suspects=suspects)


@LAB.case(1, "the end: steps after `total`, a warmup of all steps, an unknown schedule")
def _(student, rng):
    peak, final, warmup, total = _draw(rng)
    for schedule in ("linear", "cosine", "wsd"):
        found = _curve(student, schedule, peak, final, warmup, total, 3, [total, total + 5])
        compare(f"the learning rate at steps {total} and {total + 5}, {schedule},", found, np.array([final, final]))
    found = _curve(student, "linear", peak, final, 4, 5, 0, [4, 5])
    compare("the learning rate at steps 4 and 5, warmup 4, total 5, linear,", found, np.array([peak, final]))
    _curve(student, "cosine", peak, final, 4, 4, 0, [3, 4])
    _curve(student, "wsd", peak, final, warmup, total, 0, [warmup, total])              # and no division by zero
    try:
        found = student.learning_rate(warmup, "dance", peak, final, warmup, total)
    except ValueError:
        return
    raise Wrong(f"the schedule 'dance' gives {found!r}; it must raise ValueError, or a typing error would train on")
