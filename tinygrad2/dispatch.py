"""Dispatch: the registry of all ops and kernels, and the choice between a reference implementation and a fast version.

    OPS["layernorm"]                   the reference implementation (ops/layernorm.py): the maths, for any array library
    KERNELS["layernorm", "numpy"]      its fast versions for one array library (ops/kernels), the newest last

A Function enters itself where its class is defined (function.py). Steps that are not ops, such as Adam's update, are
functions: `has_kernels` marks one, `register_kernel` adds a fast version.
"""

import functools
from typing import Any

from tinygrad2.backend import xp_of
from tinygrad2.context import Setting
from tinygrad2.gpu_library import candidates
from tinygrad2.missing_kernels import note_missing


class _Registry(dict):
    """A dict whose KeyError names the remedy."""

    def __missing__(self, name):
        raise KeyError(f"no op called {name!r} has been defined; `import ops` defines those of this project")


OPS = _Registry()
KERNELS: dict[tuple[str, str], list[Any]] = {}

AROUND: dict[type, Any] = {}  # {class of an op: context in which its forward and its backward run}

_mode = Setting("kernels", None)
_alone = Setting("products_alone", False)
_default = "auto"


def register_kernel(name, backend, supports=None):
    """A decorator: this class or function is a fast version of `name` for the array library `backend`, "numpy" or
    "cupy".

    supports   for a function: supports(*args), whether it can take the arguments of a call; a class has this method
    """

    def register(kernel):
        if supports is not None:
            kernel.supports = supports
        KERNELS.setdefault((name, backend), []).append(kernel)
        return kernel

    return register


def choose(op, xp, arrays):
    """The version of `op` to run on these arrays: the newest kernel that supports them, else the op itself."""
    if kernel_mode() == "auto":
        for kernel in reversed(known := candidates(KERNELS, op.name, xp)):
            if issubclass(kernel, op) and kernel.supports(*arrays):
                return kernel
        if xp.__name__ != "numpy":
            note_missing(op, bool(known))
    return op


def has_kernels(reference):
    """A decorator for a function of arrays: a call runs the newest kernel for the library of the first array that
    supports the arguments, else the function itself."""

    @functools.wraps(reference)
    def run(*args):
        return (fast_version(reference.__name__, xp_of(args[0]), *args) or reference)(*args)

    return run


def fast_version(name, xp, *args):
    """The newest kernel of this name, for the array library xp, that supports the arguments; None if there is none, or
    the mode is "reference": the caller has another way."""
    if kernel_mode() == "auto":
        for kernel in reversed(KERNELS.get((name, xp.__name__), ())):
            if kernel.supports(*args):
                return kernel
    return None


def kernels(mode):
    """Within the block, "reference" runs the reference implementation of every op; "auto" a kernel if one fits.

    It holds for the thread or asyncio task that enters it (context.py). Raises ValueError for an unknown mode.
    """
    return _mode.set(_checked(mode))


def use_kernels(mode):
    """The same for the rest of the program: in all threads, wherever there is no block."""
    global _default
    _default = _checked(mode)


def kernel_mode():
    """The mode here, "auto" or "reference"."""
    return _mode.get() or _default


def products_alone(yes=True):
    """Within the block a product of NumPy inside an op runs on the thread that calls for it, where BLAS can be told so
    (ops/kernels/cpu/blas_threads.py; without Numba nothing changes).

    For many small products: BLAS's threads wait for each other in each of them, for longer than they compute as soon as
    another program wants a core. It holds for the thread or asyncio task that enters it, and ends with the block.
    """
    return _alone.set(yes)


def are_products_alone():
    """Is the caller in a block of products_alone()?"""
    return _alone.get()


def _checked(mode):
    if mode not in ("auto", "reference"):
        raise ValueError(f"kernels must be 'auto' or 'reference', not {mode!r}")
    return mode
