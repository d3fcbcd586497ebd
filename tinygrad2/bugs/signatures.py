"""Signatures: which bug gives a curve like this one?

curves/demo.json has the first losses of the demo with a bug in it (benchmarks/bug_curves.py). Curves are compared as
compare does, ln of the smoothed loss. With |a - b| the root of the mean square of their difference, over the steps that
both have, a bug is named only if all of this holds:

    |bug - reference| >= FAR, and the run leaves the band of the reference within these steps
    |run - bug| <= NEARER |run - reference|         the run is that much nearer to the bug than to a right training
    |run - bug| <= CLEARER |run - other bug|        for every other bug; those that are as near are named with it

Seeds differ from their mean by 0.01 to 0.02 in this measure. A curve near the reference says nothing about a bug, so
many bugs have no signature: they are for gradcheck.
"""

import functools
import math
import os

from tinygrad2.bugs.patch import patches
from tinygrad2.errors import UserError
from tinygrad2.io.files import read_json
from tinygrad2.monitor.metrics import smooth
from tinygrad2.monitor.reference_curves import WIDTH, band_of, first_outside

CURVES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "curves", "demo.json")
FORMAT, VERSION = "tinygrad2-bug-curves", 1
FAR, NEARER, CLEARER = 0.15, 1 / 4, 1 / 2
LEAST_STEPS, MOST_NAMES = 50, 2


@functools.cache
def curves():
    """What bug_curves.py has written: {"seed", "first", "curves": {name: {"flags", "losses", "validation"}}, ...}; the
    names are those of bugs, and "none" and "none, dropout" for the demo without one."""
    file = read_json(CURVES)
    if not isinstance(file, dict) or (file.get("format"), file.get("version")) != (FORMAT, VERSION):
        raise UserError(f"{CURVES}: is not of this version of tinygrad2; install it again")
    return file


def recorded():
    """{name of a bug: its losses of the steps 0, 1, ...}, for those that show on the demo's own flags."""
    return {name: row["losses"] for name, row in curves()["curves"].items()
            if not name.startswith("none") and "dropout" not in row["flags"]}  # fmt: skip


def beside_the_demo(patch):
    """Lines of a table, losses of some steps with the bug and without; none if nothing was recorded."""
    rows = curves()["curves"]
    if patch.name not in rows:
        return []
    row = rows[patch.name]
    right = rows["none, dropout" if "dropout" in row["flags"] else "none"]
    first = curves()["first"]
    lines = [f"{'':18s} with the bug   without"]
    for step in (1, 25, 50, 100, first):
        if step <= len(row["losses"]):
            lines.append(f"loss of step {step:4d} {row['losses'][step - 1]:12.3f} {right['losses'][step - 1]:9.3f}")
    if len(row["losses"]) < first:
        lines.append(f"step {len(row['losses']) + 1} is not finite: the training ends")
    else:
        lines.append(f"validation loss   {row['validation']:12.3f} {right['validation']:9.3f}")
    return lines


def distance(a, b):
    """Root of the mean square of ln a - ln b, both smoothed, over the steps that both lists of losses have."""
    n = min(len(a), len(b))
    pairs = zip(smooth(a[:n], WIDTH), smooth(b[:n], WIDTH))
    return math.sqrt(math.fsum(math.log(x / y) ** 2 for x, y in pairs) / n)


def looks_like(losses, reference):
    """[(Patch, distance, distance to the reference)] of the bugs that a run's losses point to, the nearest first; none
    for most. `reference` is {seed: losses} of the demo."""
    losses = losses[: next((i for i, loss in enumerate(losses) if not 0 < loss < math.inf), len(losses))]
    band, found = band_of(reference), []
    for name, curve in recorded().items():
        n = min(len(losses), len(curve))
        if n < LEAST_STEPS or distance(curve[:n], band.mean) < FAR or not first_outside(losses[:n], band):
            continue
        found.append((distance(losses, curve), distance(losses[:n], band.mean), name))
    if not found:
        return []
    found.sort()
    nearest = found[0][0]
    alike = [row for row in found if nearest > CLEARER * row[0]]
    if nearest > NEARER * found[0][1] or len(alike) > MOST_NAMES:
        return []
    by_name = {patch.name: patch for patch in patches().values()}
    return [(by_name[name], near, far) for near, far, name in alike or found[:1]]
