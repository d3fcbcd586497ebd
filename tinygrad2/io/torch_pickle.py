"""Reads files of torch.save without PyTorch, and without ever calling what such a file asks for.

    archive/data.pkl      the value: a pickle, that is a small program, in which tensors refer to storages
    archive/data/0 ...    the storages: raw elements
    archive/byteorder     "little"

It is a zip file with uncompressed members, so the tensors are parts of the file: none is read until it is used. The
program of the pickle is run by pickle_machine.py; its result, with tensors as recorded calls, becomes the value here.

https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

import math

import numpy as np

from tinygrad2.errors import UserError, short
from tinygrad2.io.file_bytes import FileBytes
from tinygrad2.io.files import CorruptFile
from tinygrad2.io.lazy_tensor import LazyTensor, is_shape
from tinygrad2.io.pickle_machine import TENSOR, Call, Name, UnknownNameInPickle, run_pickle
from tinygrad2.io.signatures import LOOK, recognize
from tinygrad2.io.zip_archive import members_of

_MAX_DEPTH = 32  # dicts in lists in dicts ...
_MAX_VALUE = 1 << 27  # bytes that the value may take, roughly, without sharing
_OLD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # first bytes of torch.save's files before PyTorch 1.6

_KINDS = {  # storage -> (code of a LazyTensor, or NumPy dtype of what cannot be weights; bytes of an element)
    "torch.DoubleStorage": ("F64", 8),
    "torch.FloatStorage": ("F32", 4),
    "torch.HalfStorage": ("F16", 2),
    "torch.BFloat16Storage": ("BF16", 2),
    "torch.LongStorage": ("<i8", 8),
    "torch.IntStorage": ("<i4", 4),
    "torch.ShortStorage": ("<i2", 2),
    "torch.CharStorage": ("i1", 1),
    "torch.ByteStorage": ("u1", 1),
    "torch.BoolStorage": ("?", 1),
}


class UnknownName(UserError):
    """The file asks to call something that is not a tensor; `name` says what."""

    def __init__(self, path, name):
        super().__init__(
            f"{path}: asks to call {short(name)}, but only tensors are read; save tensors and plain values only, and"
            " open this file with no other program unless you trust its author"
        )
        self.name = name


def read_torch_file(path, wanted=None):
    """Returns the value that torch.save wrote: dicts, lists, tuples, strings, numbers, and tensors, which are
    read when they are used.

    wanted(keys)    whether an entry of a dict is read; keys is the tuple of keys that lead to it (None: all are)

    Float tensors are LazyTensors, integers and booleans read-only arrays, 0-d tensors NumPy scalars. An OrderedDict
    becomes a dict, a Parameter its tensor. The checksums of the members that are read are verified.

    Raises UnknownName, a UserError, if the file asks to call something, and UserError if it is not a valid file of
    torch.save: one line with the file, what is wrong and what to do.
    """
    try:
        view = _open(path)
        members = members_of(view)
        root = _root(members)
        if f"{root}/byteorder" in members and members[f"{root}/byteorder"].read(view) != b"little":
            raise CorruptFile("its byteorder is not 'little'", "save it again on a little-endian machine")
        program = members[f"{root}/data.pkl"].read(view)
        result = run_pickle(program, _KINDS)
        return _Value(view, members, f"{root}/data/", wanted or (lambda keys: True)).of(result)
    except UnknownNameInPickle as error:
        raise UnknownName(path, str(error)) from None
    except CorruptFile as error:
        remedy = error.remedy or "copy it again or save it again"
        raise UserError(f"{path}: not a readable file of torch.save: {error}; {remedy}") from None


def _open(path):
    """The FileBytes of the file."""
    try:
        view = FileBytes.open(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the name of a file of torch.save") from None
    if len(view) < 22:
        raise CorruptFile("it is too short")
    head = bytes(view[:LOOK])
    if head.startswith(_OLD):
        raise CorruptFile("it has PyTorch's format from before version 1.6", "load and save it with a newer PyTorch")
    if not head.startswith(b"PK\x03\x04"):
        kind = recognize(head)
        if kind and kind.role in ("stand-in", "packed"):
            raise CorruptFile(f"it is {kind.what}", kind.remedy)
        raise CorruptFile("it is not a zip file", "give a file that torch.save wrote")
    return view


def _root(members):
    """The folder of all members: torch.save names it after the file, or "archive"."""
    roots = [name[: -len("/data.pkl")] for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise CorruptFile("it has no data.pkl, or several", "give a file that torch.save wrote")
    return roots[0]


# -- the value ---------------------------------------------------------------------------------------------------------


class _Value:
    """Turns the program's result into a tree of plain values and tensors, of bounded size however values are shared."""

    def __init__(self, view, members, folder, wanted):
        self.view, self.members, self.folder = view, members, folder
        self.wanted, self.checked, self.room = wanted, set(), _MAX_VALUE

    def of(self, value, keys=()):
        """Returns the value with its tensors made; `keys` lead to it."""
        self.room -= 64 + (len(value) if isinstance(value, str) else 0)
        if self.room < 0 or len(keys) > _MAX_DEPTH:
            raise CorruptFile("its values are nested too deep, or there are too many")
        if isinstance(value, dict):
            entries = ((key, entry, (*keys, key)) for key, entry in value.items())
            return {key: self.of(entry, to) for key, entry, to in entries if self.wanted(to)}
        if isinstance(value, (list, tuple)):
            return type(value)([self.of(entry, (*keys, i)) for i, entry in enumerate(value)])
        if isinstance(value, Call):
            self.room -= 1024
            try:
                return self.tensor(value)
            except CorruptFile as error:
                raise CorruptFile(f"{short('/'.join(map(str, keys)))}: {error}", error.remedy) from None
        if isinstance(value, Name):
            raise CorruptFile(f"{value.name} stands in place of a value")
        return value

    def tensor(self, call):
        """Returns a LazyTensor, or a NumPy array or scalar."""
        if call.name != TENSOR or not 6 <= len(call.arguments) <= 7 or any(call.arguments[6:]):
            raise CorruptFile("is not a tensor of a known kind")
        storage, offset, shape, strides = call.arguments[:4]
        member, code, itemsize = self.storage(storage)
        shape, strides = _sizes(shape), _sizes(strides)
        if len(shape) != len(strides) or not is_shape(shape) or not _is_size(offset):
            raise CorruptFile("its shape and its strides do not agree")
        start, stop = offset * itemsize, (offset + math.prod(shape)) * itemsize
        if stop > member.size:
            raise CorruptFile(f"its shape {short(shape)} needs more than the {member.size:,} bytes of its storage")
        transposed = len(shape) == 2 and not _is_contiguous(shape, strides)
        if transposed:
            shape, strides = shape[::-1], strides[::-1]
        if not _is_contiguous(shape, strides):
            raise CorruptFile("its elements are not contiguous", "save it again with .contiguous()")
        if member.name not in self.checked:
            member.check(self.view)
            self.checked.add(member.name)
        buffer = self.view[member.start + start : member.start + stop]
        if code not in ("F64", "F32", "F16", "BF16"):
            array = np.frombuffer(bytes(buffer), "u1" if code == "?" else code).reshape(shape)
            array = array != 0 if code == "?" else array  # a bool must be 0 or 1, a byte of the file need not
            return array.T if transposed else array[()]
        if shape:
            return LazyTensor(buffer, code, shape, transposed=transposed)
        return LazyTensor(buffer, code, (1,)).astype({"F64": np.float64}.get(code, np.float32), copy=True)[0]

    def storage(self, call):
        """Returns (member, code of its elements, bytes of each)."""
        arguments = call.arguments if isinstance(call, Call) and call.name == "storage" else ()
        if len(arguments) != 5 or arguments[0] != "storage" or not isinstance(arguments[1], Name):
            raise CorruptFile("has no storage")
        _, kind, key, _, length = arguments
        member = self.members.get(f"{self.folder}{key}") if isinstance(key, str) else None
        if kind.name not in _KINDS or member is None or not _is_size(length):
            raise CorruptFile("its storage is not in the file")
        code, itemsize = _KINDS[kind.name]
        if member.size != length * itemsize:
            raise CorruptFile(f"its storage should have {length:,} elements and has {member.size:,} bytes")
        return member, code, itemsize


def _is_size(n):
    return type(n) is int and 0 <= n < 1 << 62


def _sizes(values):
    if not isinstance(values, (tuple, list)) or len(values) > 8 or not all(map(_is_size, values)):
        raise CorruptFile("its shape or its strides are not valid")
    return tuple(values)


def _is_contiguous(shape, strides):
    """Are the elements adjacent in row-major order? The strides of axes of length 1 do not matter."""
    step = 1
    for n, stride in zip(reversed(shape), reversed(strides)):
        if n > 1 and stride != step:
            return 0 in shape
        step *= n
    return True
