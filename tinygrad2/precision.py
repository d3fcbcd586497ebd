"""How exactly matrix products of float32 numbers are computed, in the words of PyTorch's float32_matmul_precision:

    highest     as float32 is
    high        relative errors of 5e-6 of a product are permitted: a float32 number is the sum of two bfloat16 numbers
    medium      relative errors of 3e-3: it is one bfloat16 number, infinite from 3.3962e38 on; sums are float32
                (on a GPU high and medium are TF32: 11 significant bits, relative errors of 5e-4, float32's range)
    bfloat16    as "medium", but always: operands are rounded to bfloat16 on every machine (mixed precision)
    float16     operands are float16 numbers, of 11 significant bits and at most 65504, on a GPU only (mixed precision)

The first three are permissions: the fastest code computes whose errors are no larger, and that may be float32's. Only
products of two float32 matrices are affected, in the ops linear, mlp, linear_cross_entropy and matmul (ops/products.py
has what each word means), on a GPU also in attention; all else is float32.

Backward of an op has the precision that its forward had, wherever it is called: a Function notes it.
"""

import contextlib

from tinygrad2.context import Setting
from tinygrad2.dispatch import kernels
from tinygrad2.gpu_library import gpu_library

PRECISIONS = ("highest", "high", "medium")  # those of --matmul-precision
MIXED = ("bfloat16", "float16")  # those of mixed precision (mixed_precision.py)
DTYPES = ("float32", *MIXED)  # those of --dtype
ROUNDED = "bfloat16"

_precision = Setting("matmul_precision", None)
_default = "highest"


def matmul_precision(name):
    """A block in which products have this precision: "highest", "high", "medium", "bfloat16" or "float16".

    It holds for the thread or asyncio task that enters it (context.py). Raises ValueError for another name.
    """
    return _precision.set(_checked(name))


def use_matmul_precision(name):
    """The same for the rest of the program: in all threads, wherever there is no block."""
    global _default
    _default = _checked(name)


def precision():
    """The name of the precision here."""
    return _precision.get() or _default


def precision_of(config):
    """The precision that the flags --dtype and --matmul-precision ask for; config has both."""
    return config.dtype if config.dtype in MIXED else config.matmul_precision


@contextlib.contextmanager
def computing(config):
    """A block in which ops compute as the flags --kernels, --dtype and --matmul-precision say; config has all three,
    that of a training also --gpu-attention."""
    asked_for = getattr(config, "gpu_attention", "own")
    library = gpu_library(None if asked_for == "own" else asked_for)
    with kernels(config.kernels), matmul_precision(precision_of(config)), library:
        yield


def check_flags(config):
    """Raises ValueError for a --matmul-precision that --dtype leaves no room for, and for a --dtype that --device does
    not have; config has all three."""
    if config.dtype in MIXED and config.matmul_precision != "highest":
        raise ValueError(f"--matmul-precision {config.matmul_precision} is for float32: with --dtype {config.dtype} "
                         f"products take {config.dtype} numbers; leave one of them out")
    if config.dtype == "float16" and config.device == "cpu":
        raise ValueError("--dtype float16 is for --device cuda; on the CPU use --dtype bfloat16")


def _checked(name):
    if name not in (*PRECISIONS, *MIXED):
        raise ValueError(f"the precision must be one of {', '.join((*PRECISIONS, *MIXED))}, not {name!r}")
    return name
