"""CuPy itself on a machine without a GPU: its arrays, in memory of the host.

    python tests/host_cupy.py train "--device cuda --steps 6 ..."      trains, prints the losses and what CuPy computed
    python tests/host_cupy.py tests "tests/test_gpu.py -k embedding"   runs tests that need a GPU

The stand-in strict_cupy.py is ours, and so may be wrong where we are. Here allocation, views, strides, reshape, flags,
base, dtypes and signatures are CuPy's own. Computing is not: kernels run as tests/cuda_host.py does it, products by
fake_cublaslt.c, and what CuPy would launch (operators, ufuncs, copies) by NumPy on the same memory; each of these is
counted. No streams, events, graphs or pools; but allocators: the steps of a training lie in their arena (arena.py).

CuPy is patched for the whole process: never import this file in a test, start it.
"""

import contextlib
import ctypes
import json
import operator
import pathlib
import shlex
import sys
import tempfile
import time
from collections import Counter
from types import SimpleNamespace

sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[1])]
import cuda_host  # noqa: E402
import cupy  # noqa: E402, I001
import fake_cublaslt  # noqa: E402
import ml_dtypes  # noqa: E402, F401 - before CuPy, which then knows bfloat16
import numpy as np  # noqa: E402

computed: Counter = Counter()  # what CuPy would have launched or copied -> how often
_library = fake_cublaslt.compiled()


def allocate(size):
    """`size` bytes of the host as memory of a GPU, full of NaN: aligned to 512 bytes, as CuPy's are."""
    size = max(size, 1)
    memory = np.full(size + 512, 0xFF, np.uint8)
    address = -(-memory.ctypes.data // 512) * 512
    _library.fake_watch(address, size)
    return cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(address, size, memory, 0), 0)


# -- between CuPy's arrays and NumPy's ---------------------------------------------------------------------------------


def host(value):
    """NumPy's view of the memory of a CuPy array, also within lists, tuples and dicts."""
    if isinstance(value, cupy.ndarray):
        ends = [(n - 1) * stride for n, stride in zip(value.shape, value.strides)] if value.size else []
        low, high = sum(min(0, end) for end in ends), sum(max(0, end) for end in ends) + value.itemsize
        if not value.size:
            return np.empty(value.shape, value.dtype)
        memory = (ctypes.c_char * (high - low)).from_address(value.data.ptr + low)
        return np.ndarray(value.shape, value.dtype, memory, -low, value.strides)
    if isinstance(value, np.ndarray):
        raise TypeError("a host array where CuPy takes none")
    if isinstance(value, (list, tuple)):
        return type(value)(map(host, value))
    return {key: host(item) for key, item in value.items()} if isinstance(value, dict) else value


def device(result):
    """A new CuPy array with what NumPy returned, also within lists and tuples."""
    if isinstance(result, (np.ndarray, np.generic)):
        array = cupy.empty(np.shape(result), result.dtype)
        host(array)[...] = result
        return array
    return type(result)(map(device, result)) if isinstance(result, (list, tuple)) else result


def by_numpy(name, function):
    """What CuPy would do on the GPU, done by this function of NumPy."""

    def run(*args, **options):
        computed[name] += 1
        result = function(*host(args), **host(options))
        return device(result) if options.get("out") is None else options["out"]

    return run


def in_place(name, function):
    def run(array, *args):
        computed[name] += 1
        function(host(array), *host(args))
        return array

    return run


# -- CuPy's functions and methods that launch something ----------------------------------------------------------------

_FUNCTIONS = (
    "all any arange argmax argmin argsort array_equal clip concatenate copyto cumsum einsum full full_like linspace "
    "matmul max maximum mean min ones ones_like prod sort stack std sum take tile var where zeros zeros_like"
).split()
_METHODS = "all any argmax argmin copy cumsum max mean min round std sum var".split()
_OPERATORS = "add and eq floordiv ge gt le lshift lt matmul mod mul ne or pow rshift sub truediv xor".split()
_IN_PLACE = "iadd iand ilshift imul ior irshift isub itruediv ixor".split()


def _asarray(a, dtype=None, order=None, **_):
    if isinstance(a, cupy.ndarray) and dtype in (None, a.dtype):
        return a
    computed["asarray"] += 1
    return device(np.array(host(a) if isinstance(a, cupy.ndarray) else a, dtype, order=order or "K"))


def _ascontiguousarray(a, dtype=None):
    return a if a.flags.c_contiguous and dtype in (None, a.dtype) else by_numpy("copy", np.ascontiguousarray)(a, dtype)


def _get(array, stream=None, order="C", out=None, blocking=True):
    computed["get"] += 1
    out = np.empty(array.shape, array.dtype) if out is None else out
    out[...] = host(array)
    return out


def _set(array, values, stream=None):
    if not isinstance(values, np.ndarray) or (values.dtype, values.shape) != (array.dtype, array.shape):
        raise TypeError(f"set() of a {array.dtype} array {array.shape} takes a NumPy array like it")
    host(array)[...] = values


def _astype(array, dtype, order="K", casting=None, subok=None, copy=True):
    return array if not copy and array.dtype == dtype else by_numpy("astype", np.ndarray.astype)(array, dtype)


def _reshape(array, *shape, order="C", of_cupy=cupy.ndarray.reshape):
    """A view where CuPy makes one; else CuPy would copy."""
    view = host(array).reshape(*shape)
    same = np.shares_memory(view, host(array)) or not array.size
    return of_cupy(array, *shape) if same else by_numpy("reshape", np.ndarray.reshape)(array, *shape)


def _getitem(array, key, of_cupy=cupy.ndarray.__getitem__):
    parts = key if isinstance(key, tuple) else (key,)
    if any(isinstance(part, (cupy.ndarray, np.ndarray, list)) for part in parts):
        return by_numpy("x[array]", np.ndarray.__getitem__)(array, key)
    return of_cupy(array, key)


def _read(name, convert):
    def run(array):
        computed[name] += 1
        return convert(host(array))

    return run


def patch_functions():
    for name in dir(cupy):
        function = getattr(np, name, None)
        if isinstance(getattr(cupy, name), cupy.ufunc) and isinstance(function, np.ufunc):
            ufunc = by_numpy(name, function)
            for method in ("reduce", "accumulate", "at", "outer"):
                setattr(ufunc, method, by_numpy(f"{name}.{method}", getattr(function, method)))
            setattr(cupy, name, ufunc)
    for name in _FUNCTIONS:
        setattr(cupy, name, by_numpy(name, getattr(np, name)))
    cupy.array = by_numpy("array", np.array)
    cupy.asarray, cupy.ascontiguousarray = _asarray, _ascontiguousarray
    cupy.asnumpy = lambda a, stream=None, order="C", out=None, *, blocking=True: a.get(out=out)


def patch_array():
    array, methods = cupy.ndarray, {}
    for name in _OPERATORS:
        function = getattr(operator, f"{name}_" if name in ("and", "or") else name)
        methods[f"__{name}__"] = by_numpy(f"x {name} y", function)
        methods[f"__r{name}__"] = by_numpy(f"x {name} y", lambda x, y, function=function: function(y, x))
    for name in _IN_PLACE:
        methods[f"__{name}__"] = in_place(name, getattr(operator, name))
    for name in _METHODS:
        methods[name] = by_numpy(name, getattr(np.ndarray, name))
    for convert in (float, int, bool):
        methods[f"__{convert.__name__}__"] = _read("get", convert)
    methods.update(__setitem__=in_place("x[...] = y", np.ndarray.__setitem__), fill=in_place("fill", np.ndarray.fill))
    methods.update(__neg__=by_numpy("-x", operator.neg), __abs__=by_numpy("abs", abs), __getitem__=_getitem)
    methods.update(item=_read("get", np.ndarray.item), tolist=_read("get", np.ndarray.tolist), get=_get, set=_set)
    methods.update(astype=_astype, reshape=_reshape)
    for name, method in methods.items():
        setattr(array, name, method)


# -- kernels, and what a device is -------------------------------------------------------------------------------------


class _Module(cuda_host.RawModule):
    """CuPy's RawModule; what it takes for arguments is what CuPy's takes."""

    def get_function(self, name):
        return _Kernel(self, name)


class _Kernel(cuda_host._Function):
    def __call__(self, grid, block, args, *, shared_mem=0, stream=None):
        for value in args:
            assert isinstance(value, (cupy.ndarray, np.generic)), f"{self.name}: an argument is a {type(value)}"
        args = tuple(host(value) if isinstance(value, cupy.ndarray) else value for value in args)
        super().__call__(grid, block, args, shared_mem=shared_mem)


class _Queue(contextlib.nullcontext):
    """A device or a stream, on which everything is done at once. It records no graphs."""

    ptr, id, compute_capability = 0, 0, "90"

    def __init__(self, *args, **kwargs):
        super().__init__(self)

    def use(self):
        return self

    def synchronize(self):
        computed["synchronize"] += 1

    def record(self, event=None):
        return event

    def wait_event(self, event):
        """It has happened."""

    def begin_capture(self, mode=None):
        raise RuntimeError("there are no graphs in the memory of the host")

    def is_capturing(self):
        return False


class _Event:
    done = True

    def __init__(self, *args, **kwargs):
        """Takes what CuPy's takes."""

    def record(self, stream=None):
        self.time = time.perf_counter()

    def synchronize(self):
        computed["synchronize"] += 1


class _Pool:
    def malloc(self, size):
        return allocate(size)

    def total_bytes(self):
        return 12_000_000

    def free_all_blocks(self, stream=None):
        """It keeps none."""


def _properties(number):
    return dict(name=b"memory of the host", major=9, minor=0, totalGlobalMem=80 << 30, multiProcessorCount=132)


def patch_device():
    cuda = cupy.cuda
    cuda.set_allocator(allocate)
    _Queue.null = _Queue()
    cuda.Device = cuda.Stream = cuda.get_current_stream = _Queue
    cuda.Event, cuda.MemoryPool, cupy.get_default_memory_pool, cupy.RawModule = _Event, _Pool, _Pool, _Module
    cuda.get_elapsed_time = lambda begin, end: 1e3 * (end.time - begin.time)
    cuda.is_available, cuda.alloc_pinned_memory = (lambda: True), bytearray
    cuda.nvrtc, cuda.cublas = SimpleNamespace(getVersion=lambda: (13, 0)), SimpleNamespace()
    cuda.runtime = SimpleNamespace(
        getDeviceCount=lambda: 1, getDevice=lambda: 0, memGetInfo=lambda: (70 << 30, 80 << 30),
        deviceSynchronize=_Queue.null.synchronize, getDeviceProperties=_properties, runtimeGetVersion=lambda: 13000,
        driverGetVersion=lambda: 13000, CUDARuntimeError=RuntimeError,
    )  # fmt: skip


def patch():
    from ops.kernels.cuda import cublaslt

    cublaslt.load_library = lambda: _library
    patch_functions()
    patch_array()
    patch_device()


# -- what it is started for --------------------------------------------------------------------------------------------


def train(flags):
    """Train, and print one line of JSON: the losses, how many kernels ran, what CuPy would have computed."""
    import train_gpt2
    from tinygrad2.distributed.world import World

    train_gpt2.gemm_peak = lambda xp: 1e12
    with tempfile.TemporaryDirectory() as folder, cuda_host.running(check=False) as launches:
        files = f"--weights-out {folder}/w.bin --metrics {folder}/m.jsonl --run-dir {folder}/run"
        code = train_gpt2.main(World(), [*shlex.split(flags), *files.split()])
        rows = list(map(json.loads, pathlib.Path(folder, "m.jsonl").read_text().splitlines()))
    print(json.dumps(dict(losses=[row["loss"] for row in rows], launches=len(launches), computed=computed)))
    return code


def tests(flags):
    import pytest

    return pytest.main(["-p", "no:cacheprovider", *shlex.split(flags)])


if __name__ == "__main__":
    patch()
    sys.exit(dict(train=train, tests=tests)[sys.argv[1]](sys.argv[2]))
