"""The BLAS library that computes matrix products: the first one whose functions can be called directly.

- Intel's MKL, if it is installed (`pip install -e ".[mkl]"`) and the processor is Intel's. On a Xeon with AVX-512 it
  does 160 GFLOP/s per core on the shapes of a GPT, OpenBLAS 135. On other processors it was never faster.
- The OpenBLAS that NumPy's wheels contain and have loaded already.

Both compute the same bits wherever arrays are in memory, and however the rows of a product are cut, at certain places
(tests/test_products.py); its columns may be cut with MKL, and where OpenBLAS has kernels for AVX-512.
"""

import contextlib
import ctypes
import glob
import os
import sys

import numpy as np

_SEQUENTIAL = 1  # MKL's threading layer: our parts run in parallel, each on the thread that calls for it


def find():
    """(sgemm, set_num_threads, name): C functions of 64-bit integers; (None, None, "") if none can be called."""
    return _mkl() or _openblas() or (None, None, "")


def columns_may_be_cut():
    """Does NumPy's BLAS compute the same bits for a part of the columns as for all of them? It is tried."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape, dtype=np.float32) for shape in ((96, 128), (128, 384)))
    whole = np.matmul(a, b)
    for part in (slice(0, 128), slice(128, 384), slice(0, 224)):
        if not np.array_equal(np.matmul(a, b[:, part]), whole[:, part]):
            return False
    return True


def _mkl():
    if not is_intel():
        return None
    for path in sorted(glob.glob(os.path.join(sys.prefix, "lib", "libmkl_rt.so*"))):
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(path)
            library.MKL_Set_Threading_Layer(_SEQUENTIAL)
            return library.cblas_sgemm_64, lambda threads: None, "MKL"
    return None


def is_intel():
    """Is this processor one of Intel's (if the system reports it)?"""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            return any(line.startswith("vendor_id") and "GenuineIntel" in line for line in file)
    except OSError:
        return False


def _openblas():
    folder = os.path.dirname(np.__file__)
    for pattern in ("../numpy.libs/*openblas*", ".dylibs/*openblas*"):
        for path in glob.glob(os.path.join(folder, pattern)):
            with contextlib.suppress(OSError, AttributeError):
                library = ctypes.CDLL(path)                       # the copy that is loaded already
                return library.scipy_cblas_sgemm64_, library.scipy_openblas_set_num_threads64_, "OpenBLAS"
    return None
