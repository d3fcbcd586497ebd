"""cuBLASLt, the library of NVIDIA's that multiplies matrices, called by ctypes. It does what CuPy's products cannot:

- 16-bit factors with a float32 result, which may be added to what is there (beta = 1);
- a bias, or GELU, applied to each number of the result before it is written;
- strided batches of 16-bit matrices, transposed ones read in place;
- work in memory and on a stream that the caller names, so a CUDA graph can contain it.

The values are those of cublasLt.h, cublas_api.h (NVIDIA's cuBLAS 13) and library_types.h, the attributes with the types
that their comments give; tests/test_cublaslt.py compares them all with the headers. Every status is checked.
"""

import contextlib
import ctypes
import functools
import os
from ctypes import POINTER, Structure, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p

SUCCESS, NOT_SUPPORTED = 0, 15  # CUBLAS_STATUS_...
DATA_TYPES = {"float32": 0, "float16": 2, "bfloat16": 14}  # CUDA_R_32F, CUDA_R_16F, CUDA_R_16BF
COMPUTE_TYPES = {"32F": 68, "32F_FAST_TF32": 77}  # CUBLAS_COMPUTE_...: the sums are float32 in both
OPERATIONS = {False: 0, True: 1}  # CUBLAS_OP_N and CUBLAS_OP_T: is the matrix transposed?
EPILOGUES = {"DEFAULT": 1, "BIAS": 4, "GELU_AUX": 160, "GELU_AUX_BIAS": 164, "DGELU": 192}  # CUBLASLT_EPILOGUE_...
REDUCTIONS = {"INPLACE": 1, "COMPUTE_TYPE": 2}  # CUBLASLT_REDUCTION_SCHEME_...: how parts of a sum are added

# Attributes: name -> (number, type of the value). First those of an operation, CUBLASLT_MATMUL_DESC_...
OPERATION = {
    "TRANSA": (3, c_int32),
    "TRANSB": (4, c_int32),
    "EPILOGUE": (7, c_uint32),
    "BIAS_POINTER": (8, c_void_p),
    "EPILOGUE_AUX_POINTER": (11, c_void_p),
    "EPILOGUE_AUX_LD": (12, c_int64),
    "BIAS_DATA_TYPE": (26, c_int32),
}
LAYOUT = {"BATCH_COUNT": (5, c_int32), "STRIDED_BATCH_OFFSET": (6, c_int64)}  # CUBLASLT_MATRIX_LAYOUT_...
PREFERENCE = {  # CUBLASLT_MATMUL_PREF_...
    "MAX_WORKSPACE_BYTES": (1, c_uint64),
    "REDUCTION_SCHEME_MASK": (3, c_uint32),
    "MIN_ALIGNMENT_A_BYTES": (5, c_uint32),
    "MIN_ALIGNMENT_B_BYTES": (6, c_uint32),
    "MIN_ALIGNMENT_C_BYTES": (7, c_uint32),
    "MIN_ALIGNMENT_D_BYTES": (8, c_uint32),
}


class Algorithm(Structure):
    """cublasLtMatmulAlgo_t."""

    _fields_ = [("data", c_uint64 * 8)]


class HeuristicResult(Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = [
        ("algo", Algorithm),
        ("workspaceSize", c_size_t),
        ("state", c_int),
        ("wavesCount", c_float),
        ("reserved", c_int * 4),
    ]


_SET = c_void_p, c_int, c_void_p, c_size_t
CALLS = {  # name -> types of the arguments; all return a status. Handles and pointers to device memory are void*
    "cublasLtCreate": (POINTER(c_void_p),),
    "cublasLtMatmulDescCreate": (POINTER(c_void_p), c_int, c_int),
    "cublasLtMatmulDescDestroy": (c_void_p,),
    "cublasLtMatmulDescSetAttribute": _SET,
    "cublasLtMatrixLayoutCreate": (POINTER(c_void_p), c_int, c_uint64, c_uint64, c_int64),
    "cublasLtMatrixLayoutDestroy": (c_void_p,),
    "cublasLtMatrixLayoutSetAttribute": _SET,
    "cublasLtMatmulPreferenceCreate": (POINTER(c_void_p),),
    "cublasLtMatmulPreferenceDestroy": (c_void_p,),
    "cublasLtMatmulPreferenceSetAttribute": _SET,
    "cublasLtMatmulAlgoGetHeuristic": (c_void_p,) * 7 + (c_int, POINTER(HeuristicResult), POINTER(c_int)),
    "cublasLtMatmulAlgoCheck": (c_void_p,) * 6 + (POINTER(Algorithm), POINTER(HeuristicResult)),
    "cublasLtMatmul": (c_void_p,) * 14 + (c_size_t, c_void_p),
}


class CublasError(RuntimeError):
    """A call of cuBLASLt returned another status than success."""


@functools.cache
def load_library():
    """The library, its calls declared; None if it cannot be loaded."""
    for path, mode in _candidates():
        with contextlib.suppress(OSError, AttributeError):
            return declared(ctypes.CDLL(path, mode=mode))
    return None


def _candidates():
    """(path or name, mode) of what may be the library. First what CuPy has loaded with its own products: it fits the
    driver, and a second one would cost memory. Then where NVIDIA's search, which CuPy 14 requires, finds it."""
    names = [f"libcublasLt.so.{major}" for major in (13, 12)]
    loaded_only = ctypes.DEFAULT_MODE | getattr(os, "RTLD_NOLOAD", 0)
    yield from ((name, loaded_only) for name in names)
    with contextlib.suppress(ImportError, RuntimeError):
        from cuda.pathfinder import load_nvidia_dynamic_lib

        yield load_nvidia_dynamic_lib("cublasLt").abs_path, ctypes.DEFAULT_MODE
    yield from ((name, ctypes.DEFAULT_MODE) for name in names)


def declared(loaded):
    """A ctypes library with the types of its calls declared. Raises AttributeError if one is missing."""
    for name, types in CALLS.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = types, c_int
    loaded.cublasLtGetStatusName.argtypes, loaded.cublasLtGetStatusName.restype = (c_int,), ctypes.c_char_p
    loaded.cublasLtGetVersion.argtypes, loaded.cublasLtGetVersion.restype = (), c_size_t
    return loaded


def call(name, *args, what=""):
    """One call. Raises CublasError with its name, its status, and `what`: the product that it is for."""
    check(getattr(load_library(), name)(*args), name, what)


def check(status, name, what=""):
    """Raises CublasError if `status`, of the call `name`, is not success."""
    if status != SUCCESS:
        status_name = load_library().cublasLtGetStatusName(status).decode()
        raise CublasError(f"{name} returned {status_name} ({status}){' for ' if what else ''}{what}")


def create(name, *args, what=""):
    """What a call creates: a handle of cuBLASLt's."""
    handle = c_void_p()
    call(name, ctypes.byref(handle), *args, what=what)
    return handle


def set_attribute(name, handle, attribute, value, what=""):
    """Set an attribute of OPERATION, LAYOUT or PREFERENCE to a number or an address, by the call `name`."""
    number, kind = attribute
    buffer = kind(value)
    call(name, handle, number, ctypes.byref(buffer), ctypes.sizeof(buffer), what=what)
