"""How the CPU kernels are compiled: Numba, with the settings that make plain loops fast.

What every kernel here keeps to, each measured (docs/kernels.md):

- A kernel works on a range of rows, lo .. hi, and releases Python's lock; `POOL.split` runs several ranges at once.
- Slice first, then `for j in range(row.size)`: only then does the compiler know that no index is negative or shared.
- Constants are float32, or the loop runs in float64.
- exp is a polynomial in plain arithmetic: a call of the C library per element would stop vectorisation.
- Sums over rows go through a fixed number of partial sums, added in order: the same bits whatever the threads do.
- What a kernel calls is a `helper` or `inlined`, never another kernel: the same bits whatever was loaded before.
- NaN stays NaN (no "nnan" flag): a diverging training must be seen.
"""

import contextlib
import functools
import hashlib
import pathlib

import numba
import numpy as np
from numba.core import event

from tinygrad2.threads import POOL

_FAST = {"reassoc", "contract", "arcp", "nsz"}
ROW_BLOCKS = 16  # partial sums over rows: fixed, so that their edges do not depend on the number of threads


def jit(function):
    """Compile on first call, per types of the arguments; kept on disk for the next run."""
    options = dict(nogil=True, error_model="numpy", fastmath=_FAST)
    try:
        compiled = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # nowhere to keep it
        return numba.njit(**options)(function)
    with contextlib.suppress(AttributeError):  # another Numba may keep it elsewhere; then its own stamp holds
        compiled._cache._cache_file._source_stamp = _stamp()
    return compiled


@functools.cache
def _stamp():
    """What the sources of all kernels are: Numba itself would look at a kernel's own file only, and miss that exp32
    has changed."""
    folder = pathlib.Path(__file__).parent
    files = sorted(folder.glob("*.py")) + [folder.parents[1] / "erf.py"]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest(), 0


def helper(function):
    """For a loop that kernels call: its machine code becomes part of each of them, and so all kernels use their own.

    As a function apart it would be there several times under one name, once compiled alone and once within each of its
    callers, optimised anew, so that its sums may have another order. A process calls the copy that it has loaded first:
    one that compiles the kernels would get other last bits than one that finds them in the cache.
    """
    return numba.njit(forceinline=True, error_model="numpy", fastmath=_FAST)(function)


def inlined(function):
    """For the arithmetic of one element: becomes part of the loop that calls it, so that the loop can be vectorised."""
    return numba.njit(inline="always", error_model="numpy", fastmath=_FAST)(function)


def split_rows(kernel, n_rows, row_size, *args):
    """Run kernel(lo, hi, *args) over all rows; a part is worth waking a thread for from some 30,000 numbers on."""
    POOL.split(kernel, n_rows, *args, grain=max(1, 32768 // max(1, row_size)))


def split_blocks(kernel, n_rows, row_size, *args):
    """The same where a kernel sums over rows: it is called with a range of the ROW_BLOCKS blocks of rows.

    Block b holds the rows `block_edge(n_rows, b) .. block_edge(n_rows, b + 1)`.
    """
    POOL.split(kernel, ROW_BLOCKS, *args, grain=max(1, 32768 * ROW_BLOCKS // max(1, n_rows * row_size)))


@inlined
def block_edge(n_rows, block):
    """The first row of a block of rows."""
    return n_rows * block // ROW_BLOCKS


def packed(*arrays):
    """Are all of these float32 and without gaps? What a kernel that runs over memory asks in `supports`."""
    return all(a is None or (a.dtype == np.float32 and a.flags.c_contiguous) for a in arrays)


def is_float32(*arrays):
    """Are all of these (but None) float32?"""
    return all(a is None or a.dtype == np.float32 for a in arrays)


# -- the word to the user --------------------------------------------------------------------------------------------


class _Announcer(event.Listener):
    """Says once that kernels are being compiled, when Numba finds one that is not in its cache."""

    def __init__(self):
        self.say = None

    def on_start(self, _):
        if self.say:
            self.say("compiling CPU kernels (once)")
            self.say = None

    def on_end(self, _):
        pass


_announcer = _Announcer()
event.register("numba:compile", _announcer)


def announce_compiling(say):
    """Call say(text) if, from now on, a kernel has to be compiled; at most once."""
    _announcer.say = say
