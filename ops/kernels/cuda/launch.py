"""Kernels written in CUDA C++: their files, compiled when they are needed first, and the launch.

    launch(xp, "layernorm", "layernorm_forward", bfloat16, grid=rows, block=256, args=(x, out, np.int32(C)))

runs the function layernorm_forward of layernorm.cu on the current stream. NVRTC compiles a file through CuPy, for the
GPU at hand and once per type T of the activations, and CuPy keeps the result on the disk. A launch does not wait for
the GPU.
"""

import functools
import os
import re

import numpy as np

from tinygrad2.halves import half_dtype

HALVES = ("bfloat16", "float16")  # precisions of mixed precision, and the dtypes of activations in it
FOLDER = os.path.dirname(os.path.abspath(__file__))
TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}  # NumPy's name -> that of common.cuh
OPTIONS = ("-std=c++17",)
ONLY_FOR = {"attention_hopper": "sm_90a"}  # files with instructions of one generation of GPUs
STATIC_SHARED = 48 << 10  # bytes of shared memory that a block may have without asking

_NULL = np.uint64(0)  # an address; CuPy would take None for an argument that has none
_INCLUDE = re.compile(r'^#include "(\w+\.cuh)"$', re.MULTILINE)


@functools.cache
def source(file, dtype):
    """The text of FILE.cu, with what it includes, for activations of this dtype (a name): it includes no other file."""
    return f'#define T {TYPES[dtype]}\n{_read(f"{file}.cu")}'


def _text(name):
    with open(os.path.join(FOLDER, name), encoding="utf-8") as opened:
        return opened.read()


def _read(name):
    """The text of a file, with what it includes in place."""
    text = _text(name)
    return f'#line 1 "{name}"\n' + _INCLUDE.sub(lambda found: _read(found[1]) + _back_to(name, text, found), text)


def _back_to(name, text, found):
    """Line numbers go on behind an included file."""
    return f'\n#line {text.count(chr(10), 0, found.end()) + 2} "{name}"'


_functions = {}  # (RawModule of the library, file, dtype, name) -> function


def launch(xp, file, name, dtype, grid, block, args, shared=0):
    """Run one kernel.

    file, name     FILE.cu and the kernel's name in it
    dtype          T, the type of the activations: float32, float16 or bfloat16
    grid, block    how many blocks, of how many threads: numbers, or tuples of up to three; of 0 blocks none is run
    args           arrays of xp, or None for a null pointer; and NumPy's scalars of the types in the kernel's signature
    shared         bytes of dynamic shared memory of a block
    """
    grid = _dimensions(grid)
    if 0 in grid:
        return
    key = xp.RawModule, file, np.dtype(dtype).name, name
    function = _functions.get(key)
    if function is None:
        function = _functions[key] = _module(*key[:3]).get_function(name)
    if shared > STATIC_SHARED and function.max_dynamic_shared_size_bytes < shared:
        function.max_dynamic_shared_size_bytes = shared
    args = tuple(_NULL if value is None else value for value in args)
    function(grid, _dimensions(block), args, shared_mem=shared)


@functools.cache
def _module(raw_module, file, dtype):
    return raw_module(code=source(file, dtype), options=options(file))


def options(file):
    """What the compiler of FILE.cu is given."""
    return (*OPTIONS, f"-arch={ONLY_FOR[file]}") if file in ONLY_FOR else OPTIONS


def _dimensions(size):
    return size if isinstance(size, tuple) else (size,)


def wide(length, *arrays):
    """1 if rows of `length` elements can be read and written by 16 bytes in all of these arrays (None: left out), 0 if
    not: what kernels take as their argument `wide`. Rows are a multiple of 8 elements, and so are the addresses."""
    fits = length % 8 == 0 and all(array is None or array.data.ptr % 16 == 0 for array in arrays)
    return np.int32(fits)


def result_dtype(op):
    """The dtype in which a kernel of `op` returns activations: that of 16 bits in mixed precision, else float32."""
    return half_dtype(op.precision) if op.precision in HALVES else np.dtype(np.float32)
