"""A strict stand-in for CuPy, over NumPy: it shows on a machine without a GPU where host and device arrays are mixed.

    def test_something(monkeypatch):
        cupy = strict_cupy.install(monkeypatch)     # from here on, `import cupy` returns the stand-in
        x = cupy.asarray(host)
        with strict_cupy.no_sync():                 # a read of the device raises here, naming the call
            y = cupy.exp(x) @ x
        y + host                                    # TypeError, as in CuPy

A device array is a NumPy array in a box that NumPy cannot look into. (A subclass of np.ndarray would not do: NumPy
treats it as its own.) All computing is NumPy's, so results equal NumPy's bit for bit. Added are refusals of

    what CuPy refuses          np.asarray(x), x + host, out=host, where= of a ufunc, names and keywords that CuPy lacks
    what CuPy lets pass        host arrays and lists as indices (copied to the device in silence), cupy.sum(host) (done
    although it is a mistake   on the host), indices out of range (wrapped), one element assigned twice (undefined)

and what makes a device: reductions and x[0] return 0-d arrays, `empty` holds NaN, and every read back to the host is
counted as a "sync", since the program waits there until the GPU has finished. A view's `base` is the array that owns
the memory, always the same object. Of bfloat16 (ml_dtypes) a product is bfloat16 again, and there are none of more than
two axes, as in CuPy 14. Not modelled: strides of results, the
order of atomic additions, dtypes that a CUDA kernel lacks, memory reused before a kernel has run.
"""

import contextlib
import sys
import time
import weakref
from functools import partial, partialmethod
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import cuda_host
import numpy as np
import strict_memory
from strict_capture import Capturing, counts, is_capturing, kept, recorded, refused

# What CuPy 14 lacks of NumPy 2.4, and in the last line what it has with traps and nothing here needs.
_ABSENT = set(
    "asmatrix block bmat busday_count busday_offset clongdouble complex256 ctypes cupy.linalg.diagonal "
    "cupy.linalg.outer cupy.linalg.tensordot cupy.linalg.trace cupy.ndarray.resize datetime_as_string datetime_data "
    "device einsum_path float128 fromregex frompyfunc geomspace get_include getbufsize geterr geterrcall getfield "
    "histogram_bin_edges info insert is_busday isnat longdouble matrix_norm matvec multi_dot nanpercentile nanquantile "
    "nested_iters polyder polydiv polyint setbufsize seterr seterrcall setfield setflags show_runtime spacing svdvals "
    "test timedelta64 to_device unstack vecdot vecmat vector_norm "
    "flat put put_along_axis".split()
)
_ABSENT_KEYWORDS = set("where initial like subok device stable correction".split())  # though copyto has `where`
_ABSENT_KEYWORDS |= {"cupy.clip.min", "cupy.clip.max", "cupy.einsum.out", "cupy.take.mode"}
_UFUNCS_WITH = dict.fromkeys(("reduce", "accumulate"), {"add", "multiply"})  # (add.reduceat is there, but not needed)
_UFUNCS_WITH["at"] = set("add subtract maximum minimum bitwise_and bitwise_or bitwise_xor".split())
_RANDOM = "exponential gamma integers poisson random standard_exponential standard_normal uniform".split()
_CREATORS = set("arange empty eye identity indices linspace logspace ones tri tril_indices triu_indices zeros".split())
_NEED_NO_ARRAY = set("broadcast_shapes can_cast full isdtype isscalar issubdtype promote_types result_type".split())
_NEED_NO_ARRAY.update(_RANDOM)
_TAKE_NO_NUMBERS_IN_LISTS = set(  # elsewhere a list may be a shape or axes; here CuPy refuses or silently copies it
    "allclose append array_equal clip compress concatenate convolve copyto delete dot einsum extract hstack inner "
    "interp isin kron outer searchsorted stack take take_along_axis vdot vstack where".split()
)
_READERS = set(  # they return values to the host, or must know values to know how large their result is
    "array2string array_repr array_str dump dumps item save savetxt savez savez_compressed tobytes tofile tolist "
    "argwhere bincount choose compress delete extract flatnonzero histogram intersect1d nanmax nanmin nonzero "
    "setdiff1d setxor1d trim_zeros union1d unique unique_all unique_counts unique_inverse unique_values".split()
)
_DEVICE_ANSWERS = {"allclose", "array_equal", "array_equiv", "count_nonzero"}  # Python values in NumPy, 0-d in CuPy

# -- counting syncs ----------------------------------------------------------------------------------------------------

_syncs = SimpleNamespace(count=0, forbidden=False)


def _sync(call):
    refused(call)
    if _syncs.forbidden:
        raise AssertionError(f"{call} waits for the device, inside no_sync()")
    _syncs.count += 1


def sync_count():
    """How often the host has waited for the device since `install`."""
    return _syncs.count


@contextlib.contextmanager
def count_syncs():
    """`with count_syncs() as syncs: ...`: after the block, `syncs.count` is how many there were in it."""
    syncs, before = SimpleNamespace(count=None), _syncs.count
    try:
        yield syncs
    finally:
        syncs.count = _syncs.count - before


@contextlib.contextmanager
def no_sync():
    """Within the block, the first sync raises AssertionError and names the call."""
    before, _syncs.forbidden = _syncs.forbidden, True
    try:
        yield
    finally:
        _syncs.forbidden = before


_computed: list = []


@contextlib.contextmanager
def computed():
    """Within the block, what CuPy itself would compute: yields a list of (name, elements of the result). Kernels and
    products are not in it, nor are views and `empty`."""
    _computed.append(found := [])
    try:
        yield found
    finally:
        _computed.remove(found)


def _computes(name, result, given):
    """Note it, unless the result is what was given, or a view."""
    for found in _computed:
        new = [box for box in _boxes([result]) if box.base is None and all(box is not array for array in given)]
        found.extend((name, box.size) for box in new)


# -- into the box, through NumPy, and back -----------------------------------------------------------------------------


def _boxes(value):
    """The device arrays in nested lists and tuples."""
    if isinstance(value, (list, tuple)):
        return [box for item in value for box in _boxes(item)]
    return [value] if isinstance(value, ndarray) else []


def _unbox(value):
    """The NumPy array inside a device array, also within lists and tuples. A host array is refused."""
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}: a host array where a device array belongs")
    if isinstance(value, (list, tuple)):
        return type(value)(map(_unbox, value))
    return value._a if isinstance(value, ndarray) else value


def _unbox_operand(value):
    """The same for operands of ufuncs and for values to assign: arrays and scalars, no lists."""
    if isinstance(value, (ndarray, np.ndarray, bool, int, float, complex, np.generic)):
        return _unbox(value)
    raise TypeError(f"Unsupported type {type(value)}: neither a device array nor a scalar")


def _unbox_key(key):
    """The index `key` as a tuple for NumPy. Arrays in it must live on the device: others are copied there each time."""
    key = key if isinstance(key, tuple) else (key,)
    for part in key:
        if isinstance(part, (np.ndarray, list, tuple)):
            raise TypeError(f"index of {type(part)}: CuPy copies it to the device in silence; use a device array")
        if isinstance(part, ndarray) and part.dtype == bool:
            _sync("x[mask]")  # how many are True decides the shape of the result
    return _unbox(key)


def _box(result, given=()):
    """What NumPy returned, on the device. An array that was `given` (as out=) comes back as the same object."""
    for array in given:
        if result is array._a:
            return array
    if isinstance(result, (list, tuple)):
        return (list if isinstance(result, list) else tuple)(_box(item, given) for item in result)
    return ndarray(np.asarray(result)) if isinstance(result, (np.ndarray, np.generic)) else result


def _call(path, function, *args, **kwargs):
    """Run a function of NumPy, or a method with its array in front, under its name in CuPy. Ufuncs: _call_ufunc."""
    name, values = path.rpartition(".")[2], [*args, *kwargs.values()]
    given = _boxes(values)
    for keyword in kwargs:
        if name != "copyto" and not _ABSENT_KEYWORDS.isdisjoint({keyword, f"{path}.{keyword}"}):
            raise TypeError(f"{path}() got an unexpected keyword argument {keyword!r}")
    unboxed, options = _unbox(args), {keyword: _unbox(value) for keyword, value in kwargs.items()}
    for value in values if name in _TAKE_NO_NUMBERS_IN_LISTS else ():
        if isinstance(value, (list, tuple)) and len(_boxes(value)) < len(value):
            raise TypeError(f"{path}() was given scalars in a {type(value).__name__}; use a device array")
    if given and name in _CREATORS:
        raise TypeError(f"{path}() takes host values, not a device array")
    if not given and name not in _CREATORS | _NEED_NO_ARRAY:
        raise TypeError(f"{path}() was given no device array")
    if name in _READERS or (name == "where" and len(args) == 1):
        _sync(f"{path}()")
    if name in ("empty", "empty_like"):  # a pool hands out used memory: see that nothing relies on zeros
        result = function(*unboxed, **options)
        result.fill(np.frombuffer(b"\xff" * result.itemsize, result.dtype)[0])
        return kept(_box(result, given))
    answers = name in _DEVICE_ANSWERS

    def run():
        result = function(*unboxed, **options)
        return np.asarray(result) if answers else result

    def boxed(result):
        result = _box(result, given)
        _computes(path, result, [] if "out" in kwargs else given)
        return result

    return recorded(run, boxed)


def _call_ufunc(ufunc, method, *inputs, **kwargs):
    """Run a ufunc, or one of its methods, on device arrays and scalars."""
    name = ufunc.__name__
    if method not in ("__call__", "outer") and name not in _UFUNCS_WITH.get(method, ()):
        raise NotImplementedError(f"`cupy_{name}.{method}` is not supported")
    for keyword in set(kwargs) - {"out", "dtype", "casting", "axis", "keepdims"}:
        raise TypeError(f"Wrong arguments: cupy.{name} has no {keyword!r}")
    operands = [_unbox_key(x) if method == "at" and i == 1 else _unbox_operand(x) for i, x in enumerate(inputs)]
    options = {keyword: _unbox(value) for keyword, value in kwargs.items()}
    if {"bfloat16", "float16"} <= {str(x.dtype) for x in operands if isinstance(x, np.ndarray)}:
        raise TypeError(f"cupy.{name}: bfloat16 and float16 have no common dtype")
    if method == "at" and _is_bfloat16(operands[0]):
        raise TypeError(f"cupy.{name}.at does not take bfloat16")
    run = _multiply_bfloat16 if name == "matmul" and all(map(_is_bfloat16, operands)) else getattr(ufunc, method)
    given = _boxes([inputs, kwargs.get("out")])
    if name == "matmul" and is_capturing():
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")

    def boxed(result):
        result = _box(result, given)
        _computes(f"cupy.{name}", result, given if "out" not in kwargs and method != "at" else [])
        return result

    return recorded(lambda: run(*operands, **options), boxed)


def _is_bfloat16(array):
    return isinstance(array, np.ndarray) and array.dtype.name == "bfloat16"


def _multiply_bfloat16(a, b, out=None):
    """a @ b in bfloat16, which NumPy has in float32 only."""
    if max(a.ndim, b.ndim) > 2:
        raise TypeError("cupy.matmul has no product of bfloat16 arrays with more than two axes")
    product = np.matmul(a, b).astype(a.dtype)
    if out is None:
        return product
    out[...] = product
    return out


# -- the array ---------------------------------------------------------------------------------------------------------


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):  # the mixin sends every operator to __array_ufunc__
    """A device array: the NumPy array `_a`, which only this file may touch. It has no __index__, as in CuPy.

    base    the array that owns the memory of this view, None if it is its own
    """

    __slots__ = ("_a", "_memory", "base", "__weakref__")
    __hash__ = None

    def __init__(self, a):
        if type(a) is not np.ndarray or a.dtype.kind in "OSUMm":
            raise TypeError(f"no device array of {getattr(a, 'dtype', type(a))}; make one with cupy.asarray")
        self._a, self._memory, self.base = a, None, None
        if isinstance(a.base, np.ndarray):
            self.base = _owners.get(id(a.base))
        if self.base is None and id(a) not in _owners and (a.flags.owndata or isinstance(a.base, np.ndarray)):
            self._memory, self._a = strict_memory.placed(a)
        if self.base is None and isinstance(self._a.base, np.ndarray):
            self.base = ndarray(a.base)
        if self.base is None:
            _owners.setdefault(id(self._a), self)

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Use `.get()` or `cupy.asnumpy`.")

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        if ufunc.__name__ in _ABSENT:  # NumPy's own error would print the operands, and so read the device
            raise TypeError(f"CuPy has no {ufunc.__name__}")
        if any(hasattr(x, "__array_ufunc__") and not isinstance(x, (ndarray, np.ndarray, np.generic)) for x in inputs):
            return NotImplemented  # NumPy asks the other operand's class next
        return _call_ufunc(ufunc, method, *inputs, **kwargs)

    def __array_function__(self, function, _types, args, kwargs):  # np.f(x) runs cupy.f(x), where there is one
        module = {"numpy": cupy, "numpy.linalg": cupy.linalg}.get(function.__module__)
        device_function = getattr(module, function.__name__, None)
        return NotImplemented if device_function is None else device_function(*args, **kwargs)

    @property
    def data(self):
        """Where its memory is: x.data.ptr."""
        return SimpleNamespace(ptr=self._a.ctypes.data)

    def __getattr__(self, name):  # shape, dtype, T, sum, reshape, astype, ...: all that is not defined here
        path = f"cupy.ndarray.{name}"
        if name.startswith("_") or not _ABSENT.isdisjoint({name, path}):
            raise AttributeError(f"'cupy.ndarray' object has no attribute {name!r}")
        value = getattr(self._a, name)
        return partial(_call, path, getattr(np.ndarray, name), self) if callable(value) else _box(value)

    def __getitem__(self, key):
        key = _unbox_key(key)
        result = self._a[key]
        return ndarray(self._a[(*key, ...)] if isinstance(result, np.generic) else result)  # x[0] is a view in CuPy

    def __setitem__(self, key, value):
        if isinstance(value, np.ndarray):
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill; use cupy.asarray, or set()")
        key, value = _unbox_key(key), _unbox_operand(value)
        if any(isinstance(part, np.ndarray) and part.dtype != bool for part in key):
            elements = np.arange(self.size).reshape(self.shape)[key]
            if np.unique(elements).size != elements.size:
                raise ValueError("one element is assigned twice: CuPy leaves open which value stays")
        for found in _computed:
            found.append(("x[...] = y", self._a[key].size))
        array = self._a
        recorded(lambda: array.__setitem__(key, value))

    def __pow__(self, exponent):  # NumPy's operator has shortcuts (x ** 2 is a square) that its ufunc may not have
        return _box(self._a ** _unbox_operand(exponent))

    def __imatmul__(self, other):
        raise TypeError("CuPy has no in-place @=; it would bind the name to a new array")

    def __len__(self):
        return len(self._a)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __reduce__(self):  # pickle, copy
        return cupy.asarray, (self.get(),)

    def get(self, *, out=None, blocking=True):
        """A copy on the host, in `out` where given. With blocking=False the host does not wait here."""
        if out is None:
            out = np.empty(self.shape, self.dtype)
        if not isinstance(out, np.ndarray) or (out.dtype, out.shape) != (self.dtype, self.shape):
            raise TypeError(f"get() of a {self.dtype} array {self.shape} writes to a NumPy array like it")
        refused("cupy.ndarray.get()")
        out[...] = self._a
        if blocking:
            _sync("cupy.ndarray.get()")
        return out

    def set(self, arr, stream=None):
        """Overwrite with a host array of the same dtype and shape."""
        if not isinstance(arr, np.ndarray) or (arr.dtype, arr.shape) != (self.dtype, self.shape):
            raise TypeError(f"set() of a {self.dtype} array {self.shape} takes a NumPy array like it")
        refused("cupy.ndarray.set()")
        counts.uploads += stream is not None
        self._a[...] = arr


_owners = weakref.WeakValueDictionary()  # id of a NumPy array that owns its memory -> the device array around it


def _read(array, convert, *args):
    result = convert(array._a, *args)
    _sync(f"{convert.__name__}(x)")
    return result


for _convert in (float, int, bool, complex, repr, str, format):
    setattr(ndarray, f"__{_convert.__name__}__", partialmethod(_read, _convert))

# -- the module --------------------------------------------------------------------------------------------------------


class _Module(ModuleType):
    """cupy, cupy.linalg: names that are not put into it below are looked up in NumPy's module and wrapped."""

    def __init__(self, name, numpy_module=None, **names):
        super().__init__(name)
        vars(self).update(names, _numpy=numpy_module, __spec__=ModuleSpec(name, None))  # importlib asks for a spec

    def __getattr__(self, name):
        path = f"{self.__name__}.{name}"
        value = getattr(self._numpy, name, None) if _ABSENT.isdisjoint({name, path}) and name[0] != "_" else None
        if isinstance(value, np.ufunc):
            function = partial(_call_ufunc, value, "__call__")
            vars(function).update({method: partial(_call_ufunc, value, method) for method in (*_UFUNCS_WITH, "outer")})
            return function
        if isinstance(value, type) and issubclass(value, (np.number, np.bool, np.dtype, np.finfo, np.iinfo)):
            return value
        if callable(value) and not isinstance(value, type):
            return partial(_call, path, value)
        if isinstance(value, float):  # pi, inf
            return value
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def _array(a, dtype=None, order=None):
    """A new device array from a device array, a host array or lists of scalars."""
    if _boxes(a):
        values = _unbox(a)
        return recorded(lambda: np.array(values, dtype, order=order or "K"), ndarray)
    refused("a copy from the host")
    return ndarray(np.array(a, dtype, order=order or "K"))


def _asarray(a, dtype=None, order=None):
    """The same, but a device array that has this dtype already is returned as it is, if it is contiguous with order
    "C"."""
    if isinstance(a, ndarray) and dtype in (None, a.dtype) and (order is None or a.flags.c_contiguous):
        return a
    return _array(a, dtype, order)


def _asnumpy(a, *, out=None, blocking=True):
    return a.get(out=out, blocking=blocking) if isinstance(a, ndarray) else np.asarray(a)


def _as_strided(x, shape=None, strides=None):
    """A view of any shape and strides, which owns no memory either."""
    view = ndarray(np.lib.stride_tricks.as_strided(x._a, shape, strides))
    view.base = x if x.base is None else x.base
    return view


def _default_rng(seed=None):
    """A generator with methods that CuPy's has, too. (But CuPy's draws other numbers.)"""
    rng = np.random.default_rng(seed)
    return SimpleNamespace(**{name: partial(_call, f"random.{name}", getattr(rng, name)) for name in _RANDOM})


class _Queue(contextlib.nullcontext, Capturing):
    """A device or a stream. Here all work is done when the call returns, yet asking to wait for it counts."""

    ptr, array = 0, ndarray
    compute_capability = "80"  # tests of kernels for other GPUs change it

    def __init__(self, *args, **kwargs):
        super().__init__(self)

    def use(self):
        return self

    def synchronize(self):
        _sync("synchronize()")

    def record(self, event=None):
        return event

    def wait_event(self, event):
        pass


_Queue.null = _Queue()
cupy = _Module("cupy", np, ndarray=ndarray, array=_array, asarray=_asarray, asnumpy=_asnumpy, newaxis=None)
cupy.__version__ = "14.2.0"
cupy.get_array_module = lambda *arrays: cupy if _boxes(arrays) else np
cupy.RawModule, cuda_host.around = cuda_host.RawModule, recorded  # kernels run on the CPU
cupy.linalg = _Module("cupy.linalg", np.linalg)
cupy.lib = SimpleNamespace(stride_tricks=SimpleNamespace(as_strided=_as_strided))
cupy.random = _Module("cupy.random", default_rng=_default_rng)
cupy.cuda = _Module("cupy.cuda", Device=_Queue, Stream=_Queue, get_current_stream=_Queue, is_available=lambda: True)
vars(cupy.cuda).update(vars(strict_memory.names))
cupy.cuda.alloc_pinned_memory = bytearray
cupy.cuda.nvrtc, cupy.cuda.cublas = SimpleNamespace(getVersion=lambda: (13, 0)), SimpleNamespace()
cupy.cuda.runtime = SimpleNamespace(getDeviceCount=lambda: 1, getDevice=lambda: 0)
cupy.cuda.runtime.memGetInfo = lambda: (70 << 30, 80 << 30)  # bytes that are free, and all
cupy.cuda.runtime.deviceSynchronize = _Queue().synchronize



class _Event:
    """A point in the stream of work, and when it was reached."""

    done = True

    def record(self, stream=None):
        self.time = time.perf_counter()

    def synchronize(self):
        _sync("cupy.cuda.Event.synchronize()")


def _properties(device):
    return dict(name=b"stand-in", major=9, minor=0, totalGlobalMem=80 << 30, multiProcessorCount=132)


cupy.cuda.Event = _Event
cupy.cuda.get_elapsed_time = lambda begin, end: 1e3 * (end.time - begin.time)
cupy.get_default_memory_pool = lambda: strict_memory.default_pool
vars(cupy.cuda.runtime).update(getDeviceProperties=_properties, runtimeGetVersion=lambda: 13000,
                               driverGetVersion=lambda: 13000)  # fmt: skip


def install(monkeypatch):
    """Make `import cupy` return the stand-in until the test ends, and count syncs from zero. Returns the stand-in."""
    for module in (cupy, cupy.cuda, cupy.linalg, cupy.random):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    _syncs.count = 0
    return cupy
