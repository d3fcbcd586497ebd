"""16-bit floats: their dtypes, and 16-bit copies of float32 arrays for the products of a GPU in mixed precision.

    float16     NumPy's: 5 bits of exponent, 11 significant bits; from 65520 on infinite
    bfloat16    of the library ml_dtypes: float32's 8 bits of exponent, 8 significant bits (bfloat16.py)

Weights are float32, and products take them in 16 bits. They change once a step and are used several times, so the array
that owns their memory (a flat buffer, or a weight of its own) gets one copy, which is cast again only after a write
(writes.py). A part of the array, or its transpose, is the same part of the copy:

    half_of(weight.T, half_dtype("bfloat16"))    a view of the copy, laid out as weight.T is

The copy of an array goes when the array goes. Writes that writes.py does not see leave a copy as it was.

In mixed precision 16-bit and float32 arrays meet in one op, and a gradient gets the dtype of its input (may_meet).
"""

import functools
import threading
import weakref
from typing import Any

import numpy as np

from tinygrad2.backend import Array, is_array, xp_of
from tinygrad2.dispatch import has_kernels
from tinygrad2.errors import UserError
from tinygrad2.precision import MIXED
from tinygrad2.writes import address, changed_since, last_write, owner_of

_AMPERE = 8  # the first major compute capability with bfloat16
_MOST_VIEWS = 1000  # of a copy: a model has some hundred parameters

_lock = threading.Lock()
_copies: dict[int, dict[np.dtype, "_Copy"]] = {}  # id of the owner -> dtype -> its copy


@functools.cache
def half_dtype(name: str) -> np.dtype:
    """The dtype of that name, "bfloat16" or "float16".

    Raises ValueError for another name, UserError if bfloat16's library is missing.
    """
    if name not in MIXED:
        raise ValueError(f"a 16-bit dtype is one of {', '.join(MIXED)}, not {name!r}")
    if name == "float16":
        return np.dtype(np.float16)
    try:
        import ml_dtypes
    except ImportError as error:
        raise UserError("arrays of bfloat16 need the library ml_dtypes: pip install ml_dtypes, or use --dtype float16 "
                        "or float32") from error  # fmt: skip
    return np.dtype(ml_dtypes.bfloat16)


def is_half(dtype: Any) -> bool:
    """Is it float16 or bfloat16? Imports nothing: 'e' and 'E' are their characters (and those of 1-bit integers)."""
    return dtype.itemsize == 2 and dtype.char in "eE"


def is_floating(dtype: Any) -> bool:
    """Is it a dtype of floats, bfloat16 included (whose kind is 'V' in NumPy)?"""
    return dtype.kind == "f" or is_half(dtype)


def check_dtype(xp: Any, dtype: str) -> str:
    """What a --dtype of mixed precision means on the GPU in use, one line for the user; "" for float32, or on the CPU.

    xp    the array library. Raises UserError for bfloat16 on a GPU that lacks it, or where its library is missing
    """
    if xp is np or dtype not in MIXED:
        return ""
    half_dtype(dtype)
    number = xp.cuda.Device().compute_capability                  # "75" is 7.5
    has_bfloat16 = int(number[:-1]) >= _AMPERE
    gpu = f"this GPU (compute capability {number[:-1]}.{number[-1]}) has {'' if has_bfloat16 else 'no '}bfloat16"
    if dtype == "float16":
        advice = ", which needs no scaling: --dtype bfloat16" if has_bfloat16 else ""
        return f"float16 with a scaled loss; {gpu}{advice}"
    if not has_bfloat16:
        raise UserError(f"--dtype bfloat16: {gpu}; use --dtype float16")
    return f"bfloat16, of float32's range, so that the loss is not scaled; {gpu}"


def dtype_named(dtype: Any) -> np.dtype:
    """np.dtype(dtype), which knows "bfloat16" as well. Raises like half_dtype."""
    return half_dtype(dtype) if isinstance(dtype, str) and dtype == "bfloat16" else np.dtype(dtype)


def may_meet(precision: str, one: Any, other: Any) -> bool:
    """May these dtypes of floats meet in an op of this precision? Float32 and 16 bits may, in mixed precision."""
    return precision in MIXED and all(d.char == "f" or is_half(d) and d.name == precision for d in (one, other))


def mixed_operands(node: Any, arrays: list[Any], float_dtype: Any) -> list[Any]:
    """What a node's forward gets in mixed precision: an op that computes and knows no 16 bits gets float32 for them.

    float_dtype    of fit_together (operands.py). Raises ValueError for float16 on the CPU
    """
    if node.xp is np and node.precision == "float16":
        raise ValueError(f"{node.name}: mixed precision with float16 is for arrays on a GPU; on the CPU use bfloat16")
    if float_dtype is None or node.saves_halves or not is_half(float_dtype):
        return arrays
    return [a.astype(np.float32) if is_array(a) and is_half(a.dtype) else a for a in arrays]


def half_of(array: Array, dtype: np.dtype) -> Array:
    """A float32 array in 16 bits, rounded to nearest: a view of its owner's copy, to be read only.

    dtype   of half_dtype. An array that has it already is returned as it is; others raise TypeError
    """
    if array.dtype == dtype:
        return array
    if array.dtype.char != "f" or not is_half(dtype):
        raise TypeError(f"a 16-bit copy is made of float32 in float16 or bfloat16, not of {array.dtype} in {dtype}")
    owner = owner_of(array)
    with _lock:
        copy = _copies.get(id(owner), {}).get(dtype) or _begin_copy(owner, dtype)
        if copy is None:
            return _cast(array, dtype)
        if copy.written < 0 or changed_since(owner, copy.written):
            written = last_write()
            cast_to_half(_in_memory_order(owner), copy.values)
            copy.written = written
        return copy.view(array)


def current_halves(array: Array) -> list[Array]:
    """[] or [the view of an array's 16-bit copy, if that is up to date]: for a writer that keeps it so. It writes to
    both, and calls `wrote` and halves_written; otherwise the next half_of casts again."""
    owner = owner_of(array)
    with _lock:
        for copy in _copies.get(id(owner), {}).values():
            if copy.written >= 0 and not changed_since(owner, copy.written):
                return [copy.view(array)]
    return []


def halves_written(array: Array, dtype: np.dtype) -> None:
    """Whoever has written to `array` and called `wrote` has brought its owner's copy up to date as well (AdamW).

    That is only true if the copy was current before.
    """
    with _lock:
        copy = _copies.get(id(owner_of(array)), {}).get(dtype)
        if copy is not None:
            copy.written = last_write()


@has_kernels
def cast_to_half(values, out):
    """Round float32 values (n,) to nearest, ties to even, into `out` (n,), float16 or bfloat16."""
    out[...] = values.astype(out.dtype)


class _Copy:
    """The memory of an array, which begins at address `start`, in 16 bits: `values` (size,), as of write number
    `written`; -1: nothing is in it yet."""

    __slots__ = ("start", "values", "written", "_views")

    def __init__(self, start, values):
        self.start, self.values, self.written, self._views = start, values, -1, {}

    def view(self, array):
        """The elements that `array` has."""
        offset = address(array) - self.start                      # in bytes
        key = offset, array.shape, array.strides
        view = self._views.get(key)
        if view is None:
            if len(self._views) >= _MOST_VIEWS:
                self._views.clear()
            strides, as_strided = [stride // 2 for stride in array.strides], xp_of(array).lib.stride_tricks.as_strided
            view = self._views[key] = as_strided(self.values[offset // 4 :], array.shape, strides)
        return view


def _begin_copy(owner, dtype):
    """The empty _Copy of an array, noted; None for an array with gaps in its memory."""
    memory = _in_memory_order(owner)
    if memory is None:
        return None
    if id(owner) not in _copies:
        _copies[id(owner)] = {}
        weakref.finalize(owner, _copies.pop, id(owner), None).atexit = False
    copy = _copies[id(owner)][dtype] = _Copy(address(owner), xp_of(owner).empty(memory.shape, dtype))
    return copy


def _in_memory_order(owner):
    """The elements (n,) of an array in the order in which they lie in memory, a view; None if there are gaps."""
    order = sorted(range(owner.ndim), key=lambda i: -abs(owner.strides[i]))
    memory = owner.transpose(order)
    return memory.reshape(-1) if memory.flags.c_contiguous else None


def _cast(array, dtype):
    """A copy of its own, for an array whose owner has none."""
    values = xp_of(array).ascontiguousarray(array)
    out = xp_of(array).empty(array.shape, dtype=dtype)
    cast_to_half(values.reshape(-1), out.reshape(-1))
    return out
