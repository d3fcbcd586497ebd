"""Which array library an array belongs to: NumPy for the host, CuPy for the GPU. The only file that imports cupy.

CuPy is imported when a device is asked for, never before: a machine without it does not need it.
"""

import sys
from typing import Any

import numpy as np

from tinygrad2.errors import UserError
from tinygrad2.system import huge_pages

DEVICES = ("cpu", "cuda")
Array = Any  # in type hints: a NumPy or CuPy array


def array_module(device):
    """The array library of a device: numpy for "cpu", cupy for "cuda".

    Raises UserError, with the command that helps, if CuPy, a GPU or one of CUDA's libraries is missing.
    """
    if device == "cpu":
        return np
    if device != "cuda":
        raise UserError(f"device {device!r} is not known; use one of: {', '.join(DEVICES)}")
    try:
        import cupy
    except ImportError as error:
        raise UserError(
            "device 'cuda' needs CuPy: pip install -e \".[cuda13]\" (or .[cuda12] for a CUDA 12 driver), "
            "or run with --device cpu"
        ) from error
    if not cupy.cuda.is_available():
        raise UserError("device 'cuda': CuPy finds no GPU; does nvidia-smi see one? Or run with --device cpu")
    try:  # CuPy loads both when they are needed first, which would be in the middle of a step
        cupy.cuda.nvrtc.getVersion()
        hasattr(cupy.cuda, "cublas")
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"device 'cuda': CuPy cannot load a library of CUDA ({str(error).splitlines()[0]}); install them with "
            "pip install -e \".[cuda13]\" (or .[cuda12] for a CUDA 12 driver), or run with --device cpu"
        ) from error
    return cupy


def xp_of(array):
    """The library that made this array. A CuPy array can only exist once cupy has been imported."""
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(array, cupy.ndarray):
        return cupy
    return np


def is_array(value):
    """True for an array of either library (NumPy's own scalars are not arrays)."""
    return isinstance(value, np.ndarray) or xp_of(value) is not np


def device_of(array):
    """ "cpu" or "cuda"."""
    return "cpu" if xp_of(array) is np else "cuda"


def to_host(array):
    """A NumPy array with the same values. From a GPU this waits for the device: keep it out of inner loops."""
    xp = xp_of(array)
    return array if xp is np else xp.asnumpy(array)


def to_device(array, device):
    """The same values on `device`; the array itself if it is there already."""
    if device_of(array) == device:
        return array
    return to_host(array) if device == "cpu" else array_module(device).asarray(array)


def large_zeros(xp, n, dtype):
    """xp.zeros(n, dtype), for arrays of the model's size."""
    return (huge_pages if xp is np else xp).zeros(n, dtype)


def nccl_library():
    """CuPy's NCCL, which sums from GPU to GPU (distributed/nccl.py); None if it has none."""
    try:
        from cupy.cuda import nccl
    except ImportError:
        return None
    return nccl if nccl.available else None
