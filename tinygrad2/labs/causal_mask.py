"""Lab causal_mask: which keys lie in a query's future."""

import numpy as np

from tinygrad2.labs.diagnose import compare
from tinygrad2.labs.lab import Lab, Wrong
from tinygrad2.tensor import Tensor, no_grad

LAB = Lab(
    "causal_mask", "ops/attention.py", "which keys lie in a query's future",
    "Return an array (Tq, Tk) of booleans, True where key j comes after query i: there forward sets the score to -inf. "
    "The queries are the last Tq of the Tk positions, so the last query is at the position of the last key. xp is "
    "numpy, or cupy.",
    (
        "With Tq = Tk: query 0 sees key 0 only, the last query sees all. So everything above the diagonal is True, and "
        "the diagonal itself is not: a position sees itself.",
        "Query i is at position Tk - Tq + i. With one query (a text that is continued) nothing lies in the future.",
        "xp.arange(Tk) has the positions of the keys as a row; those of the queries as a column are "
        "xp.arange(Tk - Tq, Tk)[:, None]. Compare the two.",
    ),
)  # fmt: skip


def _check(student, Tq, Tk):
    query, key = np.arange(Tk - Tq, Tk)[:, None], np.arange(Tk)
    right = key > query
    suspects = {
        "True marks what may be seen; here it marks what may not": ~right,
        "the position itself is masked as well: >= in place of >": key >= query,
        "the first future key is visible: the mask is shifted by one": key > query + 1,
        "the past is masked, not the future": key < query,
        "the queries are taken as the first Tq positions; they are the last": key > np.arange(Tq)[:, None],
        "nothing is masked": np.zeros_like(right),
    }
    found = student.future(np, Tq, Tk)
    numbers = np.asarray(found) if isinstance(found, np.ndarray) else right
    lowest = numbers.min(initial=0) if numbers.dtype.kind == "f" else 0
    if lowest < 0 and np.array_equal(numbers, np.where(right, lowest, 0)):
        raise Wrong(f"the mask holds {lowest:g}: it must be True and False; forward puts -inf where it is True "
                    "(a finite number like -1e4 would leak as soon as scores fall below it)")  # fmt: skip
    suspects = {text: mask for text, mask in suspects.items() if (mask != right).any()}
    compare(f"future(xp, {Tq}, {Tk})", found, right, suspects=suspects)


@LAB.case(3, "as many queries as keys: 5, and 2")
def _(student, rng):
    _check(student, 5, 5)
    _check(student, 2, 2)


@LAB.case(3, "the last 2 queries of 5 keys, and others")
def _(student, rng):
    _check(student, 2, 5)
    for _ in range(5):
        Tk = int(rng.integers(2, 9))
        _check(student, int(rng.integers(1, Tk + 1)), Tk)


@LAB.case(2, "one query: nothing is in the future")
def _(student, rng):
    _check(student, 1, 1)
    _check(student, 1, 7)


@LAB.case(2, "no leak: what comes later changes nothing before, also with huge scores")
def _(student, rng):
    _check_leak(student, rng, 1.0)
    _check_leak(student, rng, 3000.0)


def _check_leak(student, rng, size, T=6):
    changed = int(rng.integers(1, T))
    inputs = [size * rng.standard_normal((T, 4)) for _ in range(3)]
    later = np.arange(T)[:, None] >= changed
    others = [np.where(later, size * rng.standard_normal((T, 4)), array) for array in inputs]
    with no_grad():
        before, after = (student.attention(*map(Tensor, arrays)).numpy() for arrays in (inputs, others))
    if not np.array_equal(before[:changed], after[:changed]):
        row = int(np.flatnonzero((before[:changed] != after[:changed]).any(1))[0])
        raise Wrong(f"the future leaks: token {changed} and later ones were changed, and the output at position {row} "
                    "is another one")  # fmt: skip
    if size == 1 and np.array_equal(before[changed:], after[changed:]):
        raise Wrong(f"token {changed} and later ones were changed, and the outputs there are not: does a position see "
                    "itself?")  # fmt: skip
