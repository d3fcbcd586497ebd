"""Copying between memory addresses, for compiled loops that have no arrays there."""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic


@intrinsic
def copy_bytes(typingctx, target, source, size):
    """Copy `size` bytes from one memory address to another."""

    def codegen(context, builder, signature, args):
        pointers = [builder.inttoptr(address, cgutils.voidptr_t) for address in args[:2]]
        cgutils.raw_memcpy(builder, *pointers, args[2], itemsize=1)
        return cgutils.get_null_value(ir.IntType(64))

    i = types.int64
    return i(i, i, i), codegen
