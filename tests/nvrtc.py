"""Compiles kernels for GPUs that are not here, with NVRTC: it needs no driver. What they use is in its log.

    cubins("layernorm", "bfloat16", 90)  ->  {"layernorm_forward": Use(registers=40, spilled=0, stack=0, shared=0), ...}

The library comes with the package nvidia-cuda-nvrtc, which needs nothing else; without it, tests are skipped.
"""

import ctypes
import functools
import glob
import os
import re
import sysconfig
from dataclasses import dataclass

import pytest

from ops.kernels.cuda.launch import ONLY_FOR, OPTIONS, source

ARCHITECTURES = (75, 80, 90, 100)  # T4; A100; H100, H200; B200


@dataclass(frozen=True)
class Use:
    """What one kernel uses: registers of a thread, bytes that it spills, bytes of its stack, and bytes of static shared
    memory of a block."""

    registers: int
    spilled: int
    stack: int
    shared: int


@functools.cache
def load_library():
    """NVRTC, or None."""
    folder = os.path.join(sysconfig.get_paths()["purelib"], "nvidia", "*", "lib")
    parts = sorted(glob.glob(os.path.join(folder, "libnvrtc-builtins.so.*")))
    found = sorted(glob.glob(os.path.join(folder, "libnvrtc.so.*")))
    if not parts or not found:
        return None
    ctypes.CDLL(parts[-1], ctypes.RTLD_GLOBAL)  # or every compilation fails
    return ctypes.CDLL(found[-1])


needs_nvrtc = pytest.mark.skipif(load_library() is None, reason="NVRTC is missing (pip install nvidia-cuda-nvrtc)")


def compile_text(code, architecture, name="kernel.cu"):
    """(ok, log) of compiling a text for sm_ARCHITECTURE."""
    return compiled(code, architecture, name)[:2]


def compiled(code, architecture, name="kernel.cu", more=()):
    """(ok, log, what the GPU would run or b"") of the same; `more` are options behind the others."""
    nvrtc, program, size = load_library(), ctypes.c_void_p(), ctypes.c_size_t()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), code.encode(), name.encode(), 0, None, None) == 0
    options = [*OPTIONS, f"-arch=sm_{architecture}", "-default-device", "--ptxas-options=-v", *more]
    array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    ok = nvrtc.nvrtcCompileProgram(program, len(options), array) == 0
    assert nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)) == 0
    log, cubin = ctypes.create_string_buffer(size.value), ctypes.create_string_buffer(0)
    assert nvrtc.nvrtcGetProgramLog(program, log) == 0
    if ok:
        assert nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)) == 0 and size.value > 0
        cubin = ctypes.create_string_buffer(size.value)
        assert nvrtc.nvrtcGetCUBIN(program, cubin) == 0
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return ok, log.value.decode(), cubin.raw


def cubins(file, dtype, architecture):
    """{kernel: Use} of FILE.cu, for activations of this dtype. Raises AssertionError with NVRTC's message, also if
    ptxas makes each asynchronous product wait for the one before."""
    architecture = ONLY_FOR.get(file, f"sm_{architecture}").removeprefix("sm_")
    ok, log = compile_text(source(file, dtype), architecture, f"{file}.cu")
    assert ok and "serialized" not in log, log
    return uses(log)


def uses(log):
    """{kernel: Use} in the log of ptxas."""
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        name = part.partition("'")[0]
        stack, stores, loads = (int(n) for n in re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part).groups())  # fmt: skip
        shared = re.search(r"(\d+) bytes smem", part)
        registers = int(re.search(r"Used (\d+) registers", part)[1])
        found[name] = Use(registers, stores + loads, stack, int(shared[1]) if shared else 0)
    return found
