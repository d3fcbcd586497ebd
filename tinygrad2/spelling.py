"""Keywords as NumPy and as PyTorch spell them: `axis` or `dim`, `keepdims` or `keepdim`.

A function takes NumPy's names as parameters and the rest as `**also`, which goes through here:

    def sum(x, axis=None, keepdims=False, **also):
        return apply(Sum, x, **keywords("sum", also, axis=axis, keepdims=keepdims))
"""

from typing import Any

_SAME = {
    "dim": "axis", "dims": "axis", "keepdim": "keepdims", "correction": "ddof",
    "min": "low", "max": "high", "a_min": "low", "a_max": "high",
}  # fmt: skip
_PASSED = {"out": None, "dtype": None, "order": "C"}  # NumPy's functions pass these on to methods, with these values


def keywords(function: str, also: dict[str, Any], **named: Any) -> dict[str, Any]:
    """The keywords of a call under NumPy's names: those in `named`, replaced by what `also` has under other names.

    Raises TypeError for a name that `function` does not have, for two names of one keyword with different values, and
    for an axis that is no integer.
    """
    seen: set[str] = set()
    for name, value in also.items():
        own = _SAME.get(name, name)
        if own in named:
            given = named[own] is not None and named[own] is not False and named[own] != -1  # none of the defaults
            if named[own] != value and (own in seen or (given and own != "ddof")):
                raise TypeError(f"{function}(): {name} is {own}, which is given as well; leave one of them out")
            named[own], seen = value, seen | {own}
        elif name == "unbiased" and "ddof" in named:
            named["ddof"] = int(value)
        elif name not in _PASSED or value != _PASSED[name]:
            names = ", ".join([*named, *(other for other in _SAME if _SAME[other] in named)])
            raise TypeError(f"{function}() has no keyword {name!r}; it has" + (f": {names}" if names else " none"))
    axis = named.get("axis")
    if isinstance(axis, list):
        named["axis"] = axis = tuple(axis)
    for number in axis if isinstance(axis, tuple) else (axis,):
        if isinstance(number, (bool, float)) or (number is not None and not hasattr(number, "__index__")):
            raise TypeError(f"{function}(): an axis is an integer or a tuple of them, not {number!r}")
    return named


def axis_of(function: str, also: dict[str, Any], axis: Any) -> Any:
    """The axis of a call that has no other keyword."""
    other = keywords(function, also, axis=None if axis == 0 else axis)["axis"]  # 0 may be the default
    return axis if other is None else other
