"""What Numba's compiler may emit and the operating system permits; which micro-kernel runs.

The compiler's target counts, not the list of the processor (/proc/cpuinfo): LLVM ends the process at an intrinsic that
its target lacks. Its own detection also asks whether the system saves the registers (XCR0), and NUMBA_CPU_FEATURES can
take features away. Numba's cache is keyed by this target, so machines that share a cache folder do not share code.
"""

import ctypes
import functools
import platform
import sys

from numba.core import config
from numba.core.codegen import get_host_cpu_features

_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18    # Linux on x86-64: the system call, its two arguments


@functools.cache
def features():
    """The names of the target's features, for example "avx512f": a frozenset."""
    text = get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
    return frozenset(word[1:] for word in text.split(",") if word.startswith("+"))


def has(*names):
    """Does the compiler's target have all of these features?"""
    return features().issuperset(names)


@functools.cache
def tiles_permitted():
    """Has Linux given this process the tile registers? They are asked for at the first call.

    The permission holds for all threads, those that run and those to come, and for forked children. Without it the
    first tile instruction ends the process (SIGILL).
    """
    if not has("amx-tile", "amx-bf16") or sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0


def available(kernel):
    """Can this kernel of blocks.py run here?"""
    if kernel == "vector":
        return True
    if kernel == "avx512":
        return has("avx512f")
    if not has("avx512bf16", "avx512bw"):
        return False
    return kernel == "bf16" or tiles_permitted()


def fastest_float32():
    """The float32 kernel for this processor."""
    return "avx512" if available("avx512") else "vector"


@functools.cache
def beats_blas():
    """Is fastest_float32() faster than BLAS for most shapes? With AVX-512, but on AMD's processors that is not measured
    with several threads (docs/kernels.md)."""
    return fastest_float32() == "avx512" and not _cpu_name().startswith("znver")


def fastest(precision):
    """The kernel for "highest" (float32), "high" (errors of 4e-6) or "medium" (one bfloat16 product).

    AVX512-BF16 is chosen on AMD's Zen only: Intel's processors have the instruction at half the rate of float32's. It
    has no products of parts: three at twice the rate take longer than one of float32.
    """
    if available("amx"):
        return {"highest": "amx x6", "high": "amx x3", "medium": "amx"}[precision]
    if precision == "medium" and available("bf16") and _cpu_name().startswith("znver"):
        return "bf16"
    return fastest_float32()


def _cpu_name():
    from llvmlite import binding

    return config.CPU_NAME or binding.get_host_cpu_name()
