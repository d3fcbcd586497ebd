"""How the CPU kernels are compiled: Numba, with the settings that make plain loops fast.

The rules of every kernel here, each measured (docs/kernels.md):

- A kernel works on a range of rows, lo .. hi, and releases Python's lock; `POOL.split` runs several ranges at once, for
  which each kernel begins with `spread` (spread.py).
- Slice first, then `for j in range(row.size)`: only then does the compiler know that no index is negative or shared.
- Constants are float32, or the loop runs in float64.
- exp is a polynomial in plain arithmetic: a call of the C library per element would stop vectorisation.
- Sums over rows go through a fixed number of partial sums, added in order: the same bits for any number of threads.
- What a kernel calls is a `helper` or `inlined`, never another kernel: the same bits whatever was loaded before.
- NaN stays NaN (no "nnan" flag): a diverging training must be seen.
"""

import numba
import numpy as np

from ops.kernels.cpu import kernel_cache
from tinygrad2.system.threads import POOL

_FAST = {"reassoc", "contract", "arcp", "nsz"}
_FLOAT32 = np.dtype(np.float32)
ROW_BLOCKS = 16  # partial sums over rows: fixed, so that their edges do not depend on the number of threads


def compiled(function):
    """Compile on first call, per types of the arguments; kept on disk for the next run, if there is room for it."""
    options = dict(nogil=True, error_model="numpy", fastmath=_FAST)
    try:
        compiled = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # nowhere to keep it
        kernel_cache.explain_missing()
        return numba.njit(**options)(function)
    return kernel_cache.set_up(compiled)


def jit(function):
    """A compiled kernel: function(lo, hi, ...), which begins with `spread` (spread.py)."""
    kernel = compiled(function)
    kernel.spreads = True  # POOL.split lets the team of compiled threads run it
    return kernel


def helper(function):
    """For a loop that kernels call: its machine code becomes part of each of them (Numba's forceinline).

    As a separate function it would exist several times under one name: compiled alone, and again within each caller,
    where LLVM optimises it once more and may sum in another order. A process calls the copy that it loaded first: one
    that compiles the kernels would compute other last bits than one that loads them from the cache.
    """
    return numba.njit(forceinline=True, error_model="numpy", fastmath=_FAST)(function)


def inlined(function):
    """For the arithmetic of one element: becomes part of the loop that calls it, so that the loop can be vectorised."""
    return numba.njit(inline="always", error_model="numpy", fastmath=_FAST)(function)


def split_rows(kernel, n_rows, row_size, *args):
    """Run kernel(lo, hi, *args) over all rows; from about 30,000 elements on waking a thread pays."""
    POOL.split(kernel, n_rows, *args, grain=max(1, 32768 // max(1, row_size)))


def split_blocks(kernel, n_rows, row_size, *args):
    """The same for a kernel that sums over rows: it is called with a range of the ROW_BLOCKS blocks of rows.

    Block b holds the rows `block_edge(n_rows, b) .. block_edge(n_rows, b + 1)`.
    """
    POOL.split(kernel, ROW_BLOCKS, *args, grain=max(1, 32768 * ROW_BLOCKS // max(1, n_rows * row_size)))


@inlined
def block_edge(n_rows, block):
    """The first row of a block of rows."""
    return n_rows * block // ROW_BLOCKS


def packed(*arrays):
    """Are all of these (but None) float32 and contiguous? For kernels that run over memory."""
    return all(a is None or (a.dtype == np.float32 and a.flags.c_contiguous) for a in arrays)


def is_float32(*arrays):
    """Are all of these (but None) float32?"""
    for a in arrays:  # not all(...): an op of one row takes no longer than this would
        if a is not None and a.dtype is not _FLOAT32 and a.dtype != _FLOAT32:
            return False
    return True
