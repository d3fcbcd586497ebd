"""Operands: what a Tensor holds and an op takes, and how operands fit together.

    Tensor     as its array
    array      of NumPy or CuPy, of numbers or booleans. One in another byte order, not aligned or read-only (mapped
               files, np.frombuffer, columns of tables) is copied, so that every op and kernel can use it; strides stay
    number     as a Python number, which never widens a result
    None       an optional input that is left out

The arrays of a call are on one device, and those of floats have one dtype. Arrays of integers take that dtype where
an op computes with them (`Function.mixes_integers`), as in PyTorch: `x * (x > 0)`, `x / counts`. In mixed precision
float32 and 16 bits may meet (halves.py).
"""

import numpy as np

from tinygrad2.array_protocol import ArrayProtocol
from tinygrad2.backend import device_of, is_array, xp_of
from tinygrad2.halves import dtype_named, is_half, may_meet
from tinygrad2.precision import MIXED, precision

_REMEDIES = {  # kind of a dtype -> what to do
    "c": "use its .real and .imag",
    "O": "give rows of one length and numbers only, or convert it: array.astype('float32')",
    "V": "convert it: array.astype('float32')",
    "U": "text becomes numbers by a tokenizer",
    "S": "text becomes numbers by a tokenizer",
}


def as_array(data, dtype=None):
    """A plain array of numbers. (Nested lists of) Python floats become float32, the rest keeps its dtype.

    data    an array, anything that NumPy makes one of (nested lists, a pandas column), or a number
    dtype   the dtype that the result is to have, or None

    Raises TypeError for what is no number, ValueError for lists of unequal length.
    """
    if not is_array(data):
        untyped = isinstance(data, (list, tuple, float)) and not isinstance(data, np.generic)
        data = np.asarray(data)
        if dtype is None and untyped and data.dtype == np.float64:
            dtype = np.float32
    data = _plain_array(data)
    return data if dtype is None else data.astype(dtype_named(dtype), copy=False)


def _plain_array(array):
    """The array itself, or a copy in the machine's byte order, aligned, writable, and in no subclass of NumPy's arrays.

    Kernels are compiled for such arrays, and updates in place need them.
    """
    if type(array) is not np.ndarray and isinstance(array, np.ndarray):
        if isinstance(array, np.ma.MaskedArray):
            raise TypeError("a masked array has values that do not count: fill them first, array.filled(0)")
        array = np.asarray(array)
    dtype = array.dtype
    if dtype.kind not in "fiub" and not is_half(dtype):
        raise TypeError(f"a Tensor holds numbers, not {dtype}; {_REMEDIES.get(dtype.kind, 'convert them first')}")
    if not dtype.isnative or (type(array) is np.ndarray and not array.flags.behaved):
        array = array.astype(dtype.newbyteorder("="))
    return array


def plain(op, number, value):
    """Operand `number` (from 1) as forward gets it."""
    if value is None or type(value) in (float, int, bool):
        return value
    if isinstance(value, ArrayProtocol):
        return value.data
    if isinstance(value, np.generic):
        return value.item()
    if is_array(value):
        return _plain_array(value)
    if isinstance(value, (float, int)):  # a subclass
        return value
    shown = repr(value) if len(repr(value)) < 60 else "..."
    remedy = f"make it a Tensor: Tensor({shown})" if isinstance(value, (list, tuple)) else "convert it"
    raise TypeError(
        f"{op.name}: operand {number} is a {type(value).__name__}, {shown}; "
        f"an operand is a Tensor, an array or a number: {remedy}"
    )


def plain_key(key, array):
    """What NumPy or CuPy gets as the index of `array`: no Tensors, and on a GPU no lists."""
    if isinstance(key, tuple):
        return tuple(plain_key(part, array) for part in key)
    if isinstance(key, ArrayProtocol):
        key = key.data
    if hasattr(key, "__array__") and not isinstance(key, np.generic) and not is_array(key):
        key = np.asarray(key)  # a column of a table, an array of another library
    if isinstance(key, list) and xp_of(array) is not np:
        return xp_of(array).asarray(as_array(key))
    if isinstance(key, (np.integer, np.ndarray)) and key.ndim == 0 and key.dtype.kind in "iu":
        return int(key)
    return key


def fit_together(op, inputs, arrays):
    """(arrays, their library, the dtype of floats among them or None): on one device, with one dtype of floats, or in
    mixed precision with two: then it is the one of 16 bits.

    inputs   what the caller gave, of which `arrays` were made
    Raises TypeError for mixed devices or float dtypes, naming op and operands.
    """
    xp, float_dtype, device, integers = np, None, None, False
    for i, array in enumerate(arrays, start=1):
        if type(array) is np.ndarray:  # nearly always; a generated token makes about 200 such calls
            if device == "cpu" and array.dtype is float_dtype:
                continue  # the same as one before it
            here = "cpu"
        elif is_array(array):
            here = device_of(array)
        else:
            continue
        if device is not None and here != device:
            raise TypeError(f"{op.name}: operands on different devices ({_describe(arrays)}); "
                            f"move one first: Tensor(x, device={device!r})")  # fmt: skip
        xp, device = np if here == "cpu" else xp_of(array), here
        dtype = array.dtype
        if dtype.kind == "f" or is_half(dtype):
            if float_dtype is not None and dtype != float_dtype and not op.sets_dtype:
                if may_meet(precision(), dtype, float_dtype):
                    float_dtype = dtype if is_half(dtype) else float_dtype
                    continue
                numbers = [a.item() if _is_number(a, given) else a for a, given in zip(arrays, inputs)]
                if len(list(filter(is_array, numbers))) < len(list(filter(is_array, arrays))):
                    return fit_together(op, numbers, numbers)
                raise TypeError(f"{op.name}: operands of different dtypes ({_describe(arrays)}); "
                                f"convert operand {i}: x.astype('{float_dtype}')")  # fmt: skip
            float_dtype = dtype
        elif dtype.kind != "b":
            integers = True
    if device is None:  # numbers alone: forward may take them for arrays
        arrays = [value if value is None else as_array(value) for value in arrays]
        return arrays, xp, None
    if integers and op.mixes_integers and float_dtype is not None:
        wide = np.float32 if is_half(float_dtype) and precision() in MIXED else float_dtype
        arrays = [a.astype(wide) if is_array(a) and a.dtype.kind in "iu" else a for a in arrays]
    return arrays, xp, float_dtype


def _is_number(array, given):
    """An array without axes that the caller gave as it is, not in a Tensor: np.array(2.0)."""
    return array is given and is_array(array) and array.ndim == 0


def _describe(arrays):
    """ "1: float32 (3,) on cpu, 2: 0.5" """
    shown = (f"{a.dtype} {a.shape} on {device_of(a)}" if is_array(a) else repr(a) for a in arrays)
    return ", ".join(f"{i}: {text}" for i, text in enumerate(shown, start=1))
