"""How the CPU kernels are compiled: Numba, with the settings that make plain loops fast. The only file with numba in it.

What every kernel here keeps to, each measured (docs/kernels.md):

- A kernel works on a range of rows, lo .. hi, and releases Python's lock; `POOL.split` runs several ranges at once.
- Slice first, then `for j in range(row.size)`: only then does the compiler know that no index is negative or shared.
- Constants are float32, or the loop runs in float64.
- exp is a polynomial in plain arithmetic: a call of the C library per element would stop vectorisation.
- Sums over rows go through a fixed number of partial sums, added in order: the same bits whatever the threads do.
- NaN stays NaN (no "nnan" flag): a diverging training must be seen.
"""

import functools
import hashlib
import math
import pathlib

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, event, types
from numba.extending import intrinsic

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
    compiled._cache._cache_file._source_stamp = _stamp()
    return compiled


@functools.cache
def _stamp():
    """What the sources of all kernels are: Numba itself would look at a kernel's own file only, and miss that exp32
    has changed."""
    folder = pathlib.Path(__file__).parent
    files = sorted(folder.glob("*.py")) + [folder.parents[1] / "erf.py"]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest(), 0


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
    return n_rows * block // ROW_BLOCKS


def packed(*arrays):
    """Are all of these float32 and without gaps? What a kernel that runs over memory asks in `supports`."""
    return all(a is None or (a.dtype == np.float32 and a.flags.c_contiguous) for a in arrays)


def is_float32(*arrays):
    return all(a is None or a.dtype == np.float32 for a in arrays)


# -- float32 functions that vectorise --------------------------------------------------------------------------------


@intrinsic
def _bits_to_float32(typingctx, bits):
    """The float32 with these 32 bits."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@intrinsic
def max32(typingctx, a, b):
    """The larger of two float32. Written as `a if a > b else b` a running maximum does not vectorise; this does."""

    def codegen(context, builder, signature, args):
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.FloatType(), [ir.FloatType()] * 2), "llvm.maxnum.f32"
        )
        return builder.call(function, args, fastmath=("nsz", "nnan", "reassoc"))

    return types.float32(types.float32, types.float32), codegen


_LOG2E = np.float32(1 / math.log(2))
_LN2_HI, _LN2_LO = np.float32(0.693359375), np.float32(-2.12194440e-4)   # ln 2 in two parts, Cody and Waite 1980
_LOWEST, _HIGHEST = np.float32(-69.0), np.float32(88.0)            # e^-69 = 1e-30: what is smaller never matters here
_ONE, _HALF = np.float32(1), np.float32(0.5)
_C2, _C3, _C4, _C5, _C6, _C7 = (np.float32(1 / math.factorial(k)) for k in range(2, 8))


@inlined
def exp32(x):
    """e^x for float32 x, held to -69 .. 88; relative error below 3e-7.

    x = n ln 2 + f with |f| <= ln 2 / 2, so e^x = 2^n e^f: the first by setting the exponent's bits, the second by its
    Taylor polynomial of degree 7, whose error at the ends is f^8/8! = 5e-9.
    """
    x = _LOWEST if x < _LOWEST else x                             # the comparisons let NaN pass
    x = _HIGHEST if x > _HIGHEST else x
    n = np.float32(math.floor(x * _LOG2E + _HALF))
    f = (x - n * _LN2_HI) - n * _LN2_LO
    p = _C2 + f * (_C3 + f * (_C4 + f * (_C5 + f * (_C6 + f * _C7))))
    p = _ONE + f * (_ONE + f * p)
    return p * _bits_to_float32((np.int32(n) + np.int32(127)) << np.int32(23))


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
