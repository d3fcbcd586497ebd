"""Is an array the expected one, and if not: which element is wrong, and what simple mistake would give all of it?

A mistake leaves a trace: a ratio that is the same for all elements, a term that is missing, values at their neighbours'
places. `compare` looks for these and says what each usually means. It never guesses: what it says is true of all
elements, to the given tolerance.
"""

import math

import numpy as np

from tinygrad2.labs.lab import Wrong
from tinygrad2.tensor import Tensor

_TRACE = 1e-5  # relative: how closely a trace must fit


def compare(what, found, expected, rtol=1e-6, atol=0.0, sizes=None, terms=None, suspects=None, factors=None,
            others=None):  # fmt: skip
    """Raises Wrong, naming the element and the likely mistake, unless `found` is `expected`.

    what      "dx"
    found     what the student's code has returned: an array, a Tensor, lists, a number
    expected  an array (...)
    rtol      largest difference that passes, relative to the largest expected element
    atol      a difference that passes in any case: the error of what `expected` was measured with
    sizes     {"12, the number of rows": 12, "sqrt(hs)": 2.0}: numbers that may have been multiplied or divided by; a
              mean divides by those whose name begins with a digit
    terms     {"the path through the mean": array (...)}: their sum is `expected`
    suspects  {"what somebody has done who gets this": array}
    factors   {"weight": array that broadcasts to (...)}: what may be missing, or there twice, as a factor
    others    {"db": its shape}: what else might have been returned here
    """
    expected = np.asarray(expected)
    found = _as_array(what, found, expected)
    if found.shape != expected.shape:
        about = _about_shape(found, expected, others or {})
        raise Wrong(f"{what} has shape {found.shape}, not {expected.shape}{about}")
    close = _close(found, expected, rtol, atol)
    if close.all():
        return
    worst = _worst(found, expected, close)
    index = f"{' at ' if ' ' in what else ''}[{', '.join(map(str, worst))}]" if worst else ""
    here, right = found[worst], expected[worst]
    ratio = f", ratio {here / right + 0.0:.6g}" if right and np.isfinite(here) and expected.dtype.kind != "b" else ""
    right_text, here_text = _texts(right, here, expected)
    lines = [f"{what}{index}: expected {right_text}, found {here_text}{ratio}"]
    lines.append(_explain(found, expected, close, rtol, sizes or {}, terms or {}, suspects or {}, factors or {}))
    raise Wrong("\n".join(filter(None, lines)))


def _as_array(what, found, expected):
    if found is None:
        must_be = f"an array of shape {expected.shape}" if expected.ndim else "a number"
        raise Wrong(f"{what} is None; it must be {must_be}")
    found = found.data if isinstance(found, Tensor) else found
    try:
        array = np.asarray(found)
    except ValueError:  # lists of different lengths
        array = np.asarray(None)
    if array.dtype.kind not in "fiub":
        raise Wrong(f"{what} is {type(found).__name__} {str(found)[:60]!r}; it must be an array of numbers")
    return array


def _texts(right, here, expected):
    """Both values with as many digits as they need to look different."""
    if expected.dtype.kind == "b" and here in (0, 1):
        return str(bool(right)), str(bool(here))
    for digits in (6, 9, 12, 17):
        texts = f"{right + 0.0:.{digits}g}", f"{here + 0.0:.{digits}g}"
        if texts[0] != texts[1]:
            break
    return texts


def _about_shape(found, expected, others):
    same = [name for name, shape in others.items() if shape == found.shape]
    if same:
        return f": that is the shape of {' and '.join(same)}; the order of what is returned?"
    if found.ndim > 1 and found.shape == expected.T.shape:
        return ": transposed?"
    if found.shape == tuple(n for n in expected.shape if n != 1):
        return ": an axis of size 1 is gone: keepdims=True?"
    if found.size == expected.size:
        return ": the same number of elements, so a reshape, or an axis of size 1 too much or too little"
    if found.ndim > expected.ndim:
        return ": an axis was not summed (or not taken away)"
    if found.ndim < expected.ndim:
        return ": an axis too much was summed"
    axes = [axis for axis, (n, m) in enumerate(zip(found.shape, expected.shape)) if n != m]
    copied = [axis for axis in axes if expected.shape[axis] == 1]
    if len(axes) == 1:
        n, m = found.shape[axes[0]], expected.shape[axes[0]]
        return f": axis {axes[0]} was not summed" if copied else f": axis {axes[0]} has {n} elements, not {m}"
    return ": is it another axis that was summed?" if copied else ""


def _scale(expected):
    finite = np.abs(expected[np.isfinite(expected)].astype(float))
    return float(finite.max(initial=0.0)) or 1.0


def _close(found, expected, rtol, atol=0.0):
    limit = max(atol, rtol * _scale(expected))
    return np.isclose(found.astype(float), expected.astype(float), rtol=0, atol=limit)


def _same(found, expected, rtol=_TRACE):
    return found.shape == expected.shape and bool(_close(found, expected, rtol).all())


def _worst(found, expected, close):
    """The index of the wrong element with the largest difference; NaN first."""
    difference = np.abs(found.astype(float) - expected.astype(float))
    difference = np.where(close, -1, np.nan_to_num(difference, nan=math.inf, posinf=math.inf))
    return tuple(int(i) for i in np.unravel_index(np.argmax(difference), found.shape))


def _explain(found, expected, close, rtol, sizes, terms, suspects, factors):
    """One or several sentences about all elements."""
    is_mask = expected.dtype.kind == "b"
    found, expected = found.astype(float), expected.astype(float)
    if not np.isfinite(found).all() and np.isfinite(expected).all():
        bad = ~np.isfinite(found)
        return (f"{_share(bad)} nan or infinite: a division by zero, 0 * inf, inf - inf, or e^x of a large x "
                "(subtract the largest first)")  # fmt: skip
    if named := [text for text, array in suspects.items() if _same(found, np.broadcast_to(array, found.shape))]:
        return f"that is what one gets if {', or if '.join(named[:3])}"
    if is_mask:                                                   # ratios and shifts of two values mean little
        return _pattern(~close, found)
    if not found.any():
        return "ratio 0: every element is zero, so nothing arrives here"
    trace = _rounded(found, expected) or _factor(found, expected, factors) or _ratio(found, expected, sizes)
    trace = trace or _terms(found, expected, terms, sizes) or _places(found, expected) or _offset(found, expected)
    return trace or _pattern(~close, found)


def _share(mask):
    return f"{'every element is' if mask.all() else f'{mask.sum()} of {mask.size} elements are'}"


def _ratio(found, expected, sizes):
    """Is found = c * expected everywhere? A single number always is, so of it only a simple c says something."""
    c = _fit(found, expected)
    if c is None or abs(c - 1) < _TRACE:
        return ""
    if np.count_nonzero(expected) < 2 and "." in _number(c) and not _of_size(abs(c), sizes):
        return ""
    return f"ratio {_number(c)} over all elements: {_meaning(c, sizes)}"


def _fit(found, expected):
    finite = np.isfinite(expected)
    weight = float((expected[finite] ** 2).sum())
    if not weight or not np.isfinite(found[finite]).all():
        return None
    c = float((found[finite] * expected[finite]).sum()) / weight
    return c if abs(c) > 1e-9 and _same(found[finite] / c, expected[finite]) else None


def _number(c):
    for n in range(1, 65):
        for text, value in ((f"{n}", n), (f"1/{n}", 1 / n)):
            if abs(abs(c) - value) < _TRACE * value:
                return ("-" if c < 0 else "") + text
    return f"{c:.6g}"


def _meaning(c, sizes):
    if c < 0 and abs(c + 1) > _TRACE:
        return f"the sign is wrong, and {_meaning(-c, sizes)}"
    for value, text in ((-1, "the sign is wrong: what is subtracted from what?"),
                        (2, "counted twice, or a factor 1/2 is lost"),
                        (0.5, "half of it is missing: a factor 2 is lost, or one of two uses")):  # fmt: skip
        if abs(c - value) < _TRACE:
            named = _of_size(c, sizes)
            return f"{text}; or {named}" if named else text
    return _of_size(c, sizes) or "a factor is lost, or there is one too much"


def _of_size(c, sizes):
    for name, n in sizes.items():
        is_count = name[0].isdigit()
        for power, text, usually in ((1, "times", ": a sum where a mean belongs, or the division by it is missing"),
                                     (-1, "divided by", ": a mean where a sum belongs, or divided twice"),
                                     (2, "times the square of", ""), (-2, "divided by the square of", "")):  # fmt: skip
            if n != 1 and abs(c / float(n) ** power - 1) < _TRACE:
                return f"{text} {name}{usually if is_count else ''}"
    return ""


def _terms(found, expected, terms, sizes):
    """Is found a sum of the terms, with other coefficients?"""
    if len(terms) < 2 or found.size < 2 * len(terms) + 1:
        return ""
    columns = np.stack([np.broadcast_to(term, found.shape).ravel() for term in terms.values()], 1).astype(float)
    c, _, rank, _ = np.linalg.lstsq(columns, found.ravel(), rcond=None)
    if rank < len(terms) or not _same((columns @ c).reshape(found.shape), found):
        return ""
    texts = []
    for name, value in zip(terms, c):
        if abs(value) < _TRACE:
            texts.append(f"{name} is missing (ratio 0)")
        elif abs(value - 1) > _TRACE:
            texts.append(f"{name} has the ratio {_number(value)}: {_meaning(value, sizes)}")
    return "; ".join(texts) and "all elements agree that " + "; ".join(texts)


def _factor(found, expected, factors):
    for name, factor in factors.items():
        if _same(found * factor, expected):
            return f"the factor {name} is missing"
        if _same(found, expected * factor * factor):
            return f"the factor {name} is there three times"
        if _same(found, expected * factor):
            return f"there is one factor {name} too much"
        if _same(found * factor * factor, expected):
            return f"divided by {name} instead of multiplied"
    return ""


def _places(found, expected):
    """The right values at other places."""
    if found.ndim >= 2 and found.shape[-1] == found.shape[-2] and _same(found.swapaxes(-1, -2), expected):
        return "it is the transpose of the right one"
    for axis, n in enumerate(found.shape):
        if n < 3:
            continue
        ends = [np.take(a, range(n - 1), axis) for a in (found, expected)]
        starts = [np.take(a, range(1, n), axis) for a in (found, expected)]
        if _same(starts[1], ends[1]):                             # equal neighbours: nobody sees a shift
            continue
        if _same(starts[0], ends[1]) or _same(ends[0], starts[1]):
            direction = "later" if _same(starts[0], ends[1]) else "earlier"
            return f"the right values, shifted by one along axis {axis}: each is one place {direction} than right"
        if _same(np.flip(found, axis), expected):
            return f"the right values in reversed order along axis {axis}"
    if found.size > 2 and _same(np.sort(found, None), np.sort(expected, None)):
        return "the right values at the wrong places: a reshape in place of a transpose?"
    return ""


def _offset(found, expected):
    difference = (found - expected)[np.isfinite(expected)]
    if difference.size > 2 and _same(difference, np.full_like(difference, difference.flat[0])):
        return f"every element is off by the same {difference.flat[0]:.6g}"
    return ""


def _rounded(found, expected):
    if _same(found, expected, 2 * _TRACE):
        return ("only the last digits differ: a step in float32 (the inputs are float64, and all steps must be), a "
                "constant with too few digits, or a small number added where none belongs")  # fmt: skip
    return ""


def _pattern(wrong, found):
    """Which elements are wrong, if not all are."""
    if wrong.all():
        return "every element is wrong, and no simple ratio, term or shift explains all of them"
    zero = ", and those are zero" if not found[wrong].any() else ""
    for axis, n in enumerate(wrong.shape):
        others = tuple(a for a in range(wrong.ndim) if a != axis)
        hit, full = wrong.any(others), wrong.all(others)
        if n > 1 and hit.sum() <= n // 2 and (hit == full).all():
            places = ", ".join(map(str, np.flatnonzero(hit)))
            return f"wrong is all of index {places} along axis {axis}{zero}; the rest is right"
    return f"{_share(wrong)} wrong{zero}; the rest is right"
