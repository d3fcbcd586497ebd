"""Runs the program of a pickle, as torch.save writes it, without calling anything.

A pickle may name any function of any module and have it called; that is how a file of weights can take over a computer.
Here its program runs on a virtual machine that has no way to call anything: it makes integers, floats, strings, lists,
tuples and dicts, and records the calls that make tensors and storages (torch_pickle.py). Other names are refused.

https://github.com/python/cpython/blob/main/Lib/pickletools.py
"""

import struct
from dataclasses import dataclass

from tinygrad2.errors import short
from tinygrad2.io.files import CorruptFile
from tinygrad2.io.zip_archive import text

TENSOR, PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
_KNOWN = (TENSOR, PARAMETER, "collections.OrderedDict", "torch.Size")
_MAX_STEPS = 2_000_000  # opcodes of the program that are run


class UnknownNameInPickle(Exception):
    """The name of something that the file asks to call."""


@dataclass
class Name:
    """A known name, as a value of the program."""

    name: str


@dataclass
class Call:
    """A tensor or storage, not checked yet: the arguments of its call."""

    name: str
    arguments: tuple


def run_pickle(program, storages=()):
    """Returns the value that the program of a pickle (bytes) makes; tensors and storages are Calls.

    `storages` are the names of the types of storage. Raises CorruptFile for a program that torch.save does not write,
    UnknownNameInPickle if it asks to call something other than tensors.
    """
    return _Machine(program, storages).run()


class _Machine:
    """A stack of values, a memo, and some forty opcodes.

    Every opcode takes its bytes from the program and adds at most one value, so that time and memory are bounded by
    the length of the program.
    """

    def __init__(self, program, storages):
        self.program, self.known, self.at = program, {*_KNOWN, *storages}, 0
        self.stack, self.marks, self.memo = [], [], {}

    def run(self):
        """Returns the value that is left when the program stops. Raises CorruptFile or UnknownNameInPickle."""
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
            raise CorruptFile(f"its pickle has a {type(value).__name__.strip('_')} where none belongs")
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
        if name not in self.known:
            raise UnknownNameInPickle(name)
        self.push(Name(name))

    def name_on_stack(self):
        last = self.pop(str)
        self.name(f"{self.pop(str)}.{last}")

    def storage(self):
        self.push(Call("storage", self.pop(tuple)))

    def call(self):
        """The opcode that calls: it records a tensor or makes an empty dict, and calls nothing."""
        arguments, name = self.pop(tuple), self.pop(Name).name
        if name == "collections.OrderedDict" and not arguments:
            self.push({})
        elif name == "torch.Size" and len(arguments) == 1 and isinstance(arguments[0], tuple):
            self.push(arguments[0])
        elif name == TENSOR:
            self.push(Call(name, arguments))
        elif name == PARAMETER and arguments and isinstance(arguments[0], Call):
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
