"""Runs kernels written in CUDA C++ on the CPU: compiled by g++ with cuda_host.h, executed by cuda_host.cpp.

    module = RawModule(code=source("layernorm", "float32"))        what CuPy's class of this name does, on NumPy arrays
    module.get_function("layernorm_forward")((grid,), (block,), (x, out, np.int32(C)))

Arguments are compared with the kernel's signature: arrays by their dtype, scalars by their type. `running` chooses the
order of threads and blocks, and whether accesses to memory are checked:

    with running(reverse=True, check=True) as launches: ...
    with running(check=False, ends=2): ...                        of each launch only the first and the last 2 blocks

A fault raises KernelFault with its line in the kernel's file: a race between threads or blocks, an access outside of
all arrays of the call, or of the array in the kernel that is indexed, a barrier that not all threads reach, shared
memory that is read before it was written. The checks know what CUDA promises, so they do not depend on the order in
which threads happen to run here. Variables of a thread that are not set are no zeros.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
from types import SimpleNamespace

import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent
COMPILER = shutil.which("g++")
APART = 256                                                       # bytes
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="g++ is not installed")

_KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(([^)]*)\)')
_SCALARS = {"int": "int32", "unsigned": "uint32", "unsigned int": "uint32", "float": "float32", "double": "float64",
            "long long": "int64", "unsigned long long": "uint64", "size_t": "uint64"}  # fmt: skip
_ELEMENTS = _SCALARS | {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "unsigned short": "uint16",
                        "short": "int16", "char": "int8", "signed char": "int8", "unsigned char": "uint8",
                        "bool": "bool"}  # fmt: skip
_MODE = SimpleNamespace(reverse=False, check=True, ends=None, launches=[])


def around(run):
    """Every launch goes through here; strict_cupy.py puts its own function in its place."""
    run()


class KernelFault(AssertionError):
    """What the checks have found, a line each."""


@contextlib.contextmanager
def running(reverse=False, check=True, ends=None):
    """Within the block, launches run like this; yields the list of their kernels' names, in order."""
    before = vars(_MODE).copy()
    vars(_MODE).update(reverse=reverse, check=check, ends=ends, launches=[])
    try:
        yield _MODE.launches
    finally:
        vars(_MODE).update(before)


class RawModule:
    """The kernels of a source text."""

    def __init__(self, code, options=()):
        self.code = code
        self.defines = dict(re.findall(r"^#define (\w+) (\w+)$", code, re.MULTILINE))
        self.signatures = {name: _parse(arguments, self.defines) for name, arguments in _KERNEL.findall(code)}
        self.libraries = {}

    def get_function(self, name):
        if name not in self.signatures:
            raise AssertionError(f"no kernel {name}; there are: {', '.join(self.signatures)}")
        return _Function(self, name)

    def compiled(self, check):
        if check not in self.libraries:
            self.libraries[check] = _compiled(self.code, tuple(self.signatures), check)
        return self.libraries[check]


class _Function:
    def __init__(self, module, name):
        self.module, self.name = module, name
        self.max_dynamic_shared_size_bytes = 48 << 10

    def __call__(self, grid, block, args, *, shared_mem=0, stream=None):
        assert 0 <= shared_mem <= min(self.max_dynamic_shared_size_bytes, 227 << 10), f"{shared_mem} bytes are too many"
        sizes = [*grid, *[1] * (3 - len(grid)), *block, *[1] * (3 - len(block))]
        assert all(n >= 1 for n in sizes), f"{self.name}: grid {grid}, block {block}: each must be 1 or more"
        assert sizes[0] < 2**31 and max(sizes[1:3]) < 2**16 and sizes[5] <= 64, f"{self.name}: {grid}, {block}"
        assert np.prod(sizes[3:]) <= 1024, f"{self.name}: a block of {block} threads"
        args = [getattr(value, "_a", value) for value in args]    # the arrays in the boxes of strict_cupy.py
        around(lambda: self._run(sizes, args, shared_mem))

    def _run(self, sizes, args, shared_mem):
        holders, extents, smallest, gaps = self._marshal(args)
        pointers = (ctypes.c_void_p * max(1, len(holders)))(*(holder.ctypes.data for holder in holders))
        library = self.module.compiled(_MODE.check)
        error, accesses = ctypes.create_string_buffer(4096), ctypes.c_size_t()
        failed = library.cuda_host_launch(
            ctypes.cast(library[f"call_{self.name}"], ctypes.c_void_p), pointers, (ctypes.c_uint * 6)(*sizes),
            ctypes.c_size_t(shared_mem), (ctypes.c_uint64 * max(1, len(extents)))(*extents), len(extents) // 3,
            smallest, int(_MODE.check), int(_MODE.reverse), ctypes.c_uint(_MODE.ends or 2**31), error,
            ctypes.c_size_t(len(error)), ctypes.byref(accesses),
        )  # fmt: skip
        if failed:
            text = re.sub("@([0-9a-f]+)@", lambda found: _line(library._name, found[1]), error.value.decode())
            raise KernelFault(f"{self.name}: {text.strip()}")
        assert accesses.value or not _MODE.check, f"{self.name} has accessed nothing: are its accesses checked?"
        _MODE.launches.append(self.name)

    def _marshal(self, args):
        """([a NumPy array with the bytes of each argument], [address, bytes, address of what belongs to it or 0 of each
        array, ...], bytes of the smallest element, at most 4, what these addresses are of)."""
        signature = self.module.signatures[self.name]
        assert len(args) == len(signature), f"{self.name} takes {len(signature)} arguments, not {len(args)}"
        holders, extents, smallest, gaps = [], [], 4, []
        before = []                                               # (array, is it __restrict__, is it const)
        for i, (value, (kind, dtype, name, promise)) in enumerate(zip(args, signature), 1):
            where = f"{self.name}: argument {i}, {name},"
            if kind == "scalar":
                assert isinstance(value, np.generic), f"{where} is no NumPy scalar but {type(value).__name__}"
                assert value.dtype == dtype, f"{where} is {value.dtype}, the kernel's {dtype}"
                holders.append(np.array(value))
                continue
            if type(value) is np.uint64 and value == 0:           # a null pointer
                holders.append(np.array(value))
                continue
            assert value is not None, f"{where} is None: CuPy reads the argument at address 0; use np.uint64(0)"
            assert isinstance(value, np.ndarray), f"{where} is no array but {type(value).__name__}"
            assert dtype in ("void", value.dtype.name), f"{where} is {value.dtype}, the kernel's {dtype}"
            start, end = np.lib.array_utils.byte_bounds(value) if value.size else (value.ctypes.data, value.ctypes.data)
            holders.append(np.array(value.ctypes.data, np.uint64))
            extents += [start, end - start, 0]
            smallest = min(smallest, value.itemsize)
            for other, alone, is_const in before:
                if (alone or promise[0]) and not (is_const and promise[1]):
                    shared = np.shares_memory(other, value)
                    assert not shared, f"{where} shares memory with another one: neither may be __restrict__"
            before.append((value, *promise))
            if _MODE.check and end - start > value.nbytes:        # a view with gaps
                gaps.append(_belonging(value, start, end))
                extents[-1] = gaps[-1].ctypes.data
        return holders, extents, smallest, gaps


def _belonging(array, start, end):
    """For each byte from start to end, 1 if it belongs to the array."""
    found = np.zeros(end - start, np.uint8)
    first, strides = found[array.ctypes.data - start :], (*array.strides, 1)
    np.lib.stride_tricks.as_strided(first, (*array.shape, array.itemsize), strides, writeable=True)[...] = 1
    return found


def _parse(arguments, defines):
    """[(kind, dtype, name, (is it __restrict__, is it const))] of a parameter list: kind is "array" or "scalar"."""
    parsed = []
    for argument in filter(None, (part.strip() for part in arguments.replace("\n", " ").split(","))):
        words = argument.replace("__restrict__", " ").replace("*", " * ").split()
        words = [defines.get(word, word) for word in words if word != "const"]
        name, kind = words.pop(), "scalar"
        if words[-1] == "*":
            kind, _ = "array", words.pop()
        type_name = " ".join(words)
        known = {**_ELEMENTS, "void": "void"} if kind == "array" else _SCALARS
        assert type_name in known, f"a kernel's argument of type {argument!r}: not known here"
        parsed.append((kind, known[type_name], name, ("__restrict__" in argument, "const " in argument)))
    return parsed


def _compiled(code, names, check):
    """The shared library of a source text, compiled once and kept in the temporary folder."""
    assert "__builtin_mem" not in code, "not checked: call memcpy, memmove or memset"
    calls = []
    for name, arguments in _KERNEL.findall(code):
        types = [part.strip().rpartition(" ")[0] for part in arguments.replace("\n", " ").split(",") if part.strip()]
        types = [kind.replace("__restrict__", "").strip() for kind in types]
        taken = ", ".join(f"*({kind}*)arguments[{i}]" for i, kind in enumerate(types))
        calls.append(f'extern "C" NOT_CHECKED void call_{name}(void** arguments) {{ {name}({taken}); }}')
    code = f"{code}\n" + "\n".join(calls) + "\n"
    flags = ["-std=c++17", "-fPIC", "-g1", "-fno-gnu-unique", "-fno-strict-aliasing", "-ffp-contract=off", "-w"]
    flags += ["-O1", "-fsanitize=thread,bounds", *_uninitialised()] if check else ["-O2"]
    folder = pathlib.Path(tempfile.gettempdir()) / f"tinygrad2-cuda-host-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    header, host = folder / f"{_digest(*flags)}.h", folder / f"{_digest()}.o"
    target = folder / f"{_digest(code, *flags)}.so"
    if not (target.exists() and target.with_suffix(".shared").exists()):
        with tempfile.TemporaryDirectory(dir=folder) as work:
            if not host.exists():
                _build(["-std=c++17", "-fPIC", "-O2", "-c", str(HERE / "cuda_host.cpp")], host, work)
            if not header.exists():                               # compiled, it is read in no time
                _build([*flags, "-x", "c++-header", str(HERE / "cuda_host.h")], header.with_suffix(".h.gch"), work)
                (pathlib.Path(work) / "h").write_text(_own_files()[0], encoding="utf-8")
                os.replace(pathlib.Path(work) / "h", header)
            name = (re.findall(r'^#line 1 "([\w.]+)"', code, re.MULTILINE) or ["kernels.cu"])[0]
            (pathlib.Path(work) / name).write_text(code, encoding="utf-8")
            _run([COMPILER, *flags, "-include", str(header), "-x", "c++", "-S", name, "-o", "kernels.s"], work)
            assembly = pathlib.Path(work) / "kernels.s"
            text, variables = _apart(assembly.read_text(encoding="utf-8"))
            assembly.write_text(text, encoding="utf-8")
            _run([COMPILER, "-shared", "-Wl,-Bsymbolic", "kernels.s", str(host), "-o", "both.so", "-ldl"], work)
            symbols = _run(["nm", "both.so"], work) if variables else ""
            places = {words[-1]: words[0] for words in map(str.split, symbols.splitlines())}
            lines = (f"{places[name]} {size:x}" for name, size in variables.items())
            (pathlib.Path(work) / "both.shared").write_text("\n".join(lines))
            os.replace(pathlib.Path(work) / "both.shared", target.with_suffix(".shared"))
            os.replace(pathlib.Path(work) / "both.so", target)
    library = ctypes.CDLL(str(target))
    numbers = [int(word, 16) for word in target.with_suffix(".shared").read_text().split()]
    library.cuda_host_shared((ctypes.c_uint64 * max(1, len(numbers)))(*numbers), len(numbers) // 2)
    return library


@functools.cache
def _own_files():
    return [(HERE / name).read_text(encoding="utf-8") for name in ("cuda_host.h", "cuda_host.cpp")]


def _digest(*texts):
    return hashlib.sha256("\0".join([*texts, *_own_files()]).encode()).hexdigest()[:24]


def _build(options, target, folder):
    _run([COMPILER, *options, "-o", "built"], folder)
    os.replace(pathlib.Path(folder) / "built", target)


@functools.cache
def _uninitialised():
    """Local variables that nothing has set hold no zeros, if the compiler can see to it."""
    version = subprocess.run([COMPILER, "-dumpversion"], capture_output=True, text=True).stdout
    return ["-ftrivial-auto-var-init=pattern"] if int(version.split(".")[0]) >= 12 else []


def _apart(assembly):
    """The assembly with APART bytes behind each static variable, and {symbol: bytes}, the size of each. Shared memory
    is static here, and an access beyond the end of one array would be one to the next."""
    sizes = {}

    def common(found):
        sizes[found[1]] = int(found[2])
        return f"\t.comm\t{found[1]},{sizes[found[1]] + APART},{found[3]}"

    def zeros(found):
        sizes[found[1]] = int(found[2])
        return f"{found[1]}:\n\t.zero\t{sizes[found[1]] + APART}\n"

    assembly = re.sub(r"^\t\.comm\t(\w+),(\d+),(\d+)$", common, assembly, flags=re.MULTILINE)
    return re.sub(r"^(\w+):\n\t\.zero\t(\d+)\n", zeros, assembly, flags=re.MULTILINE), sizes


def _run(command, folder):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]
    return done.stdout


def _line(library, offset):
    """The file and line of an address in a library."""
    try:
        done = subprocess.run(["addr2line", "-e", library, f"0x{offset}"], capture_output=True, text=True)
    except OSError:
        return "(line unknown: addr2line is not installed)"
    return f"({os.path.basename(done.stdout.strip())})"
