"""A second set of kernels for a GPU, such as those of NVIDIA's library cuDNN, in place of the project's own.

    with gpu_library("cudnn"):
        ...                                       attention is cuDNN's, where it takes the arrays

A training enters the block for --gpu-attention; the choice between kernels itself is dispatch.py's.
"""

from tinygrad2.context import Setting

_library = Setting("gpu_library", None)


def gpu_library(name):
    """Within the block an op on a GPU runs a kernel that is registered for this library, such as "cudnn", if one takes
    the arrays; else one for the array library, as with None. "warps" has none: it is the project's own attention
    without the kernels of attention_hopper.py.

    It holds for the thread or asyncio task that enters it, and ends with the block.
    """
    return _library.set(name)


def gpu_library_in_use():
    """The name that the innermost block of gpu_library() around the caller has; None without one."""
    return _library.get()


def candidates(kernels, name, xp):
    """The kernels of an op for arrays of xp in the order in which they were registered, those of the library behind
    them: the last one is tried first. kernels: the registry (dispatch.py)."""
    known = kernels.get((name, xp.__name__), [])
    library = xp.__name__ != "numpy" and gpu_library_in_use()
    return [*known, *kernels.get((name, library), ())] if library else known
