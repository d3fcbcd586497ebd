"""Lab embedding_backward: a row is used at several places, and gets the sum of their gradients."""

import numpy as np

from tinygrad2.labs.diagnose import compare
from tinygrad2.labs.gradients import Use, check_in_the_engine
from tinygrad2.labs.lab import Lab, Wrong

LAB = Lab(
    "embedding_backward", "ops/embedding.py", "the gradient of an embedding table",
    "dout (..., C) is dL/dout, ids (...) the integers that were looked up, and shape (V, C) that of the table. Return "
    "two gradients: that of the table, of the dtype of dout, and None for the ids.",
    (
        "Start from zeros of `shape`: rows whose id does not occur have no gradient.",
        "dweight[ids] += dout looks right, but NumPy reads, adds and writes once per *different* id: of an id that "
        "occurs three times only the last one counts.",
        "xp.add.at(dweight, ids, dout) adds once for each position.",
    ),
)  # fmt: skip


def _check(student, ids, rng, V=6, C=4, layout=np.asarray):
    use = Use(student.Embedding, {"weight": rng.standard_normal((V, C)), "ids": ids}, rng, layout=layout)
    flat, rows = ids.reshape(-1), use.dout.reshape(-1, C)
    last, first, count = np.zeros((V, C)), np.zeros((V, C)), np.bincount(flat, minlength=V)[:, None]
    for i, row in zip(flat, rows):
        last[i] = row
    for i, row in zip(flat[::-1], rows[::-1]):
        first[i] = row
    n = max(1, len(flat))
    right = np.stack([rows[flat == i].sum(0) for i in range(V)]) if len(flat) else np.zeros((V, C))
    use.check("weight", sizes={f"{n}, the number of ids": n}, suspects={
        "of an id that occurs several times only the last position counts (dweight[ids] += dout, or = dout)": last,
        "of an id that occurs several times only the first position counts": first,
        "the positions of an id are averaged, not summed": right / np.maximum(count, 1),
        "the sum of all positions is given to every row": np.broadcast_to(rows.sum(0), (V, C)),
        "rows are multiplied by how often they occur": last * count,
    })  # fmt: skip


@LAB.case(2, "each id once")
def _(student, rng):
    _check(student, rng.permutation(6)[:4], rng)


@LAB.case(4, "ids that occur several times")
def _(student, rng):
    _check(student, rng.permutation([0, 2, 2, 5, 2, 0]), rng)


@LAB.case(2, "ids (2, 3) and (2, 2, 2), one column, no ids")
def _(student, rng):
    _check(student, rng.integers(0, 3, (2, 3)), rng)
    _check(student, rng.integers(0, 6, (2, 2, 2)), rng)
    _check(student, rng.integers(0, 3, 5), rng, C=1)
    use = Use(student.Embedding, {"weight": rng.standard_normal((3, 2)), "ids": np.zeros((0,), int)}, rng)
    compare("dweight without ids", use.grads["weight"], np.zeros((3, 2)))


@LAB.case(1, "ids and dout that are not contiguous")
def _(student, rng):
    _check(student, np.asfortranarray(rng.integers(0, 3, (3, 4))), rng, layout=np.asfortranarray)


@LAB.case(1, "inside a graph, with two uses of the result, and the dtype of dout")
def _(student, rng):
    inputs = {"weight": rng.standard_normal((4, 3)), "ids": np.array([1, 1, 3])}
    if note := check_in_the_engine(student.Embedding, inputs, rng):
        raise Wrong(note.removeprefix("note: "))
