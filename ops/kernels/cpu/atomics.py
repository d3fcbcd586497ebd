"""Words of memory that threads of compiled code share: read, written and exchanged without a lock, in one total order.

`words` is the address of an array of int64, `i` the index of one of them.
"""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_ORDER = "seq_cst"
_PAUSE = {"x86": ("llvm.x86.sse2.pause", []), "aarch64": ("llvm.aarch64.hint", [1])}  # 1: yield
_int = types.int64


def _word(builder, words, i):
    address = builder.add(words, builder.mul(i, ir.Constant(_I64, 8)))
    return builder.inttoptr(address, ir.PointerType(_I64))


def _nothing():
    return cgutils.get_null_value(_I64)


@intrinsic
def load(typingctx, words, i):
    """The word."""

    def codegen(context, builder, signature, args):
        return builder.load_atomic(_word(builder, *args), _ORDER, 8)

    return _int(_int, _int), codegen


@intrinsic
def store(typingctx, words, i, value):
    """Write the word."""

    def codegen(context, builder, signature, args):
        builder.store_atomic(args[2], _word(builder, *args[:2]), _ORDER, 8)
        return _nothing()

    return _int(_int, _int, _int), codegen


@intrinsic
def add(typingctx, words, i, value):
    """Add to the word; returns what it was."""

    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("add", _word(builder, *args[:2]), args[2], _ORDER)

    return _int(_int, _int, _int), codegen


@intrinsic
def exchange(typingctx, words, i, old, new):
    """Write `new` if the word is `old`; returns whether it was."""

    def codegen(context, builder, signature, args):
        result = builder.cmpxchg(_word(builder, *args[:2]), args[2], args[3], _ORDER, _ORDER)
        return builder.extract_value(result, 1)

    return types.boolean(_int, _int, _int, _int), codegen


@intrinsic
def pause(typingctx):
    """A moment's rest for a loop that waits for a word: the core's other thread and its power supply profit."""

    def codegen(context, builder, signature, args):
        triple = builder.module.triple
        kind = "x86" if triple.startswith(("x86", "i386", "i686")) else triple.split("-")[0]
        if kind in _PAUSE:
            name, numbers = _PAUSE[kind]
            kinds = ir.FunctionType(ir.VoidType(), [_I32] * len(numbers))
            function = cgutils.get_or_insert_function(builder.module, kinds, name)
            builder.call(function, [ir.Constant(_I32, number) for number in numbers])
        return _nothing()

    return _int(), codegen


@intrinsic
def let_others_run(typingctx):
    """Offers the core to another thread (POSIX sched_yield)."""

    def codegen(context, builder, signature, args):
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_I32, []), "sched_yield")
        builder.call(function, [])
        return _nothing()

    return _int(), codegen
