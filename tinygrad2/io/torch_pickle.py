"""Reads files of torch.save without PyTorch, and without ever calling what such a file asks for.

    archive/data.pkl      the value: a pickle, that is a small program, in which tensors refer to storages
    archive/data/0 ...    the storages: raw elements
    archive/byteorder     "little"

It is a zip file with uncompressed members, so the tensors can be mapped: nothing is read until it is used.

A pickle may name any function of any module and have it called; that is how a file of weights can take over a computer.
Here its program runs on a virtual machine of our own, which has no way to call anything: it makes numbers, strings,
lists, tuples and dicts, and the few names of _KNOWN stand for tensors. Any other name is refused.

https://docs.pytorch.org/docs/stable/notes/serialization.html
https://github.com/python/cpython/blob/main/Lib/pickletools.py
"""

import math
import os
import struct
from dataclasses import dataclass

import numpy as np

from tinygrad2.errors import UserError, short
from tinygrad2.io.files import CorruptFile
from tinygrad2.io.lazy_tensor import LazyTensor, is_shape, map_file, release
from tinygrad2.io.zip_archive import members_of, text

_MAX_STEPS = 2_000_000  # opcodes of the program that are run
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
_TENSOR, _PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
_KNOWN = {*_KINDS, _TENSOR, _PARAMETER, "collections.OrderedDict", "torch.Size"}


class UnknownName(UserError):
    """The file asks to call something that is not a tensor; `name` says what."""

    def __init__(self, path, name):
        super().__init__(
            f"{path}: asks to call {short(name)}, but only tensors are read; save tensors and plain values only, and"
            " open this file with no other program unless you trust its author"
        )
        self.name = name


def read_torch_file(path, wanted=None):
    """Returns the value that torch.save wrote: dicts, lists, tuples, strings, numbers; tensors are views of the file.

    wanted(keys)    whether an entry of a dict is read; keys is the tuple of keys that lead to it (None: all are)

    Float tensors are LazyTensors, integers and booleans read-only arrays, 0-d tensors NumPy scalars. An OrderedDict
    becomes a dict, a Parameter its tensor. The checksums of the members that are read are verified.

    Raises UnknownName, a UserError, if the file asks to call something, and UserError if it is not a valid file of
    torch.save: one line with the file, what is wrong and what to do.
    """
    try:
        view, mapped = _open(path)
        members = members_of(view)
        root = _root(members)
        if f"{root}/byteorder" in members and members[f"{root}/byteorder"].read(view) != b"little":
            raise CorruptFile("its byteorder is not 'little'", "save it again on a little-endian machine")
        program = members[f"{root}/data.pkl"].read(view)
        return _Value(view, mapped, members, f"{root}/data/", wanted or (lambda keys: True)).of(_Machine(program).run())
    except _Unknown as error:
        raise UnknownName(path, str(error)) from None
    except CorruptFile as error:
        remedy = error.remedy or "copy it again or save it again"
        raise UserError(f"{path}: not a readable file of torch.save: {error}; {remedy}") from None


class _Unknown(Exception):
    """The name of something that the file asks to call."""


def _open(path):
    """A memoryview of the file, and the mapped file itself."""
    if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe may block indefinitely
        raise CorruptFile("it is not a regular file", "give the name of a file")
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size < 22:
                raise CorruptFile("it is too short")
            view, mapped = map_file(file)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the name of a file of torch.save") from None
    if view[: len(_OLD)] == _OLD:
        raise CorruptFile("it has PyTorch's format from before version 1.6", "load and save it with a newer PyTorch")
    if view[:4] != b"PK\x03\x04":
        raise CorruptFile("it is not a zip file", "give a file that torch.save wrote")
    return view, mapped


def _root(members):
    """The folder of all members: torch.save names it after the file, or "archive"."""
    roots = [name[: -len("/data.pkl")] for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise CorruptFile("it has no data.pkl, or several", "give a file that torch.save wrote")
    return roots[0]


# -- the program in data.pkl -------------------------------------------------------------------------------------------


@dataclass
class _Name:
    """A name of _KNOWN, as a value of the program."""

    name: str


@dataclass
class _Call:
    """A tensor or storage, not checked yet: the arguments of its call."""

    name: str
    arguments: tuple


class _Machine:
    """Runs the program of a pickle: a stack of values, a memo, and some forty opcodes.

    Every opcode takes its bytes from the program and adds at most one value, so that time and memory are bounded by
    the length of the program.
    """

    def __init__(self, program):
        self.program, self.at = program, 0
        self.stack, self.marks, self.memo = [], [], {}

    def run(self):
        """Returns the value that is left when the program stops. Raises CorruptFile or _Unknown."""
        for _ in range(_MAX_STEPS):
            code = self.take(1)
            if code == b".":
                break
            opcode = _OPCODES.get(code)
            if opcode is None:
                raise CorruptFile(f"its pickle has the opcode {code!r}, which torch.save does not write")
            opcode(self)
        else:
            raise CorruptFile(f"its pickle has more than {_MAX_STEPS:,} opcodes")
        if len(self.stack) != 1 or self.marks or self.at != len(self.program):
            raise CorruptFile("its pickle does not end where it should")
        return self.stack[0]

    def take(self, n):
        """The next n bytes of the program."""
        data = self.program[self.at : self.at + n]
        if len(data) != n:
            raise CorruptFile("its pickle is cut off")
        self.at += n
        return data

    def number(self, n):
        """The next n bytes as an unsigned integer."""
        return int.from_bytes(self.take(n), "little")

    def line(self):
        """The string up to the next line feed."""
        end = self.program.find(b"\n", self.at)
        if end < 0:
            raise CorruptFile("its pickle is cut off")
        return text(self.take(end + 1 - self.at)[:-1])

    def push(self, value):
        self.stack.append(value)

    def pop(self, kind=object):
        """The topmost value above the last mark; it must be of the given kind."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise CorruptFile("its pickle takes a value from an empty stack")
        value = self.stack.pop()
        if not isinstance(value, kind):
            raise CorruptFile(f"its pickle has a {type(value).__name__.strip('_')} in the wrong place")
        return value

    def top(self, kind):
        """The topmost value, which stays on the stack."""
        self.push(self.pop(kind))
        return self.stack[-1]

    def pop_marked(self):
        """Removes the last mark and returns the list of values above it."""
        if not self.marks:
            raise CorruptFile("its pickle takes a value from an empty stack")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def tuple_of(self, n):
        self.push(tuple([self.pop() for _ in range(n)][::-1]))

    def recall(self, key):
        if key not in self.memo:
            raise CorruptFile("its pickle uses a memo that was never stored")
        self.push(self.memo[key])

    def memoize(self, key):
        self.memo[key] = self.top(object)

    def set_items(self, pairs):
        """Sets entries of the topmost dict. Keys are str or int: hashing a nested tuple could take exponential time."""
        target = self.top(dict)
        if len(pairs) % 2:
            raise CorruptFile("its pickle has a key without a value")
        for key, value in zip(pairs[::2], pairs[1::2]):
            if not (isinstance(key, str) or type(key) is int and abs(key) < 1 << 60):  # larger ones could share a hash
                raise CorruptFile(f"its pickle has a {type(key).__name__.strip('_')} as a key")
            target[key] = value

    def append(self, values):
        self.top(list).extend(values)

    def name(self, name):
        if name not in _KNOWN:
            raise _Unknown(name)
        self.push(_Name(name))

    def name_on_stack(self):
        last = self.pop(str)
        self.name(f"{self.pop(str)}.{last}")

    def storage(self):
        self.push(_Call("storage", self.pop(tuple)))

    def call(self):
        """The opcode that calls: it records a tensor or makes an empty dict, and calls nothing."""
        arguments, name = self.pop(tuple), self.pop(_Name).name
        if name == "collections.OrderedDict" and not arguments:
            self.push({})
        elif name == "torch.Size" and len(arguments) == 1 and isinstance(arguments[0], tuple):
            self.push(arguments[0])
        elif name == _TENSOR:
            self.push(_Call(name, arguments))
        elif name == _PARAMETER and arguments and isinstance(arguments[0], _Call):
            self.push(arguments[0])
        else:
            raise CorruptFile(f"its pickle uses {name} in an unknown way")

    def build(self):
        """Sets attributes of the topmost value: a state dict has _metadata, which do not concern the tensors."""
        state = self.pop(dict)
        self.top(dict)
        if set(state) - {"_metadata"}:
            raise CorruptFile(f"its pickle sets attributes, {short(list(state)[0])}")

    def protocol(self):
        if not 2 <= self.number(1) <= 5:
            raise CorruptFile("its pickle has an unknown protocol")


_OPCODES = {
    b"\x80": _Machine.protocol,
    b"\x95": lambda m: m.take(8),
    b"}": lambda m: m.push({}),
    b"]": lambda m: m.push([]),
    b")": lambda m: m.push(()),
    b"(": lambda m: m.marks.append(len(m.stack)),
    b"t": lambda m: m.push(tuple(m.pop_marked())),
    b"\x85": lambda m: m.tuple_of(1),
    b"\x86": lambda m: m.tuple_of(2),
    b"\x87": lambda m: m.tuple_of(3),
    b"q": lambda m: m.memoize(m.number(1)),
    b"r": lambda m: m.memoize(m.number(4)),
    b"\x94": lambda m: m.memoize(len(m.memo)),
    b"h": lambda m: m.recall(m.number(1)),
    b"j": lambda m: m.recall(m.number(4)),
    b"c": lambda m: m.name(f"{m.line()}.{m.line()}"),
    b"\x93": _Machine.name_on_stack,
    b"R": _Machine.call,
    b"b": _Machine.build,
    b"Q": _Machine.storage,
    b"s": lambda m: m.set_items([m.pop(), m.pop()][::-1]),
    b"u": lambda m: m.set_items(m.pop_marked()),
    b"a": lambda m: m.append([m.pop()]),
    b"e": lambda m: m.append(m.pop_marked()),
    b"J": lambda m: m.push(int.from_bytes(m.take(4), "little", signed=True)),
    b"K": lambda m: m.push(m.number(1)),
    b"M": lambda m: m.push(m.number(2)),
    b"\x8a": lambda m: m.push(int.from_bytes(m.take(m.number(1)), "little", signed=True)),
    b"G": lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    b"X": lambda m: m.push(text(m.take(m.number(4)))),
    b"\x8c": lambda m: m.push(text(m.take(m.number(1)))),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"0": lambda m: m.pop(),
    b"1": lambda m: m.pop_marked(),
}


# -- the value ---------------------------------------------------------------------------------------------------------


class _Value:
    """Turns the program's result into a tree of plain values and tensors, of bounded size however values are shared."""

    def __init__(self, view, mapped, members, folder, wanted):
        self.view, self.mapped, self.members, self.folder = view, mapped, members, folder
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
        if isinstance(value, _Call):
            self.room -= 1024
            try:
                return self.tensor(value)
            except CorruptFile as error:
                raise CorruptFile(f"{short('/'.join(map(str, keys)))}: {error}", error.remedy) from None
        if isinstance(value, _Name):
            raise CorruptFile(f"{value.name} stands in place of a value")
        return value

    def tensor(self, call):
        """Returns a LazyTensor, or a NumPy array or scalar."""
        if call.name != _TENSOR or not 6 <= len(call.arguments) <= 7 or any(call.arguments[6:]):
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
            release(self.mapped)
            self.checked.add(member.name)
        buffer = self.view[member.start + start : member.start + stop]
        if code not in ("F64", "F32", "F16", "BF16"):
            array = np.frombuffer(buffer, "u1" if code == "?" else code).reshape(shape)
            array = array != 0 if code == "?" else array  # a bool must be 0 or 1, a byte of the file need not
            return array.T if transposed else array[()]
        if shape:
            return LazyTensor(buffer, code, shape, transposed=transposed)
        return LazyTensor(buffer, code, (1,)).astype({"F64": np.float64}.get(code, np.float32), copy=True)[0]

    def storage(self, call):
        """Returns (member, code of its elements, bytes of each)."""
        arguments = call.arguments if isinstance(call, _Call) and call.name == "storage" else ()
        if len(arguments) != 5 or arguments[0] != "storage" or not isinstance(arguments[1], _Name):
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
