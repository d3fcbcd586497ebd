"""A kernel's own address, from within it, and calling it by that address: for `spread` (spread.py)."""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

_I64 = ir.IntType(64)


@intrinsic
def enclosing_kernel(typingctx):
    """(address of a function (arguments, lo, hi) that calls the kernel whose code this is, address of the values of the
    kernel's arguments after lo and hi in this call). The function returns 0, or another number if the kernel raised.

    The arrays among these values have no owner. A slice of an array counts as a reference to its owner, so threads that
    take row after row of one array would change one counter all the time, each fetching it from the other's cache: two
    threads computed a layernorm more slowly than one. The caller owns the arrays until all threads are done.
    """

    def codegen(context, builder, signature, _):
        kernel = builder.function
        result, error, _, _, *rest = kernel.args                  # first: where Numba puts what it returns, raises
        values = cgutils.alloca_once(builder, ir.LiteralStructType([value.type for value in rest]))
        for i, (value, following) in enumerate(zip(rest, [*rest[1:], None])):
            if _is_owner(value, following):
                value = ir.Constant(value.type, None)
            builder.store(value, cgutils.gep_inbounds(builder, values, 0, i))
        entry = ir.Function(builder.module, ir.FunctionType(_I64, [_I64] * 3), kernel.name + ".part")
        entry.linkage = "internal"
        inner = ir.IRBuilder(entry.append_basic_block())
        saved = inner.inttoptr(entry.args[0], values.type)
        code = inner.call(kernel, [
            cgutils.alloca_once(inner, result.type.pointee, zfill=True),
            cgutils.alloca_once(inner, error.type.pointee, zfill=True),
            *entry.args[1:],
            *(inner.load(cgutils.gep_inbounds(inner, saved, 0, i)) for i in range(len(rest))),
        ])  # fmt: skip
        inner.ret(inner.sext(code, _I64))
        addresses = [builder.ptrtoint(pointer, _I64) for pointer in (entry, values)]
        return context.make_tuple(builder, signature.return_type, addresses)

    return types.UniTuple(types.int64, 2)(), codegen


def _is_owner(value, following):
    """Is it the first of the values that Numba passes for an array: owner, Python's object, sizes, address, ...?"""
    return following is not None and all(isinstance(v.type, ir.PointerType) for v in (value, following))


@intrinsic
def call(typingctx, function, arguments, lo, hi):
    """Call a function by the address that `enclosing_kernel` gave."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], ir.PointerType(ir.FunctionType(_I64, [_I64] * 3)))
        return builder.call(pointer, args[1:])

    i = types.int64
    return i(i, i, i, i), codegen
