"""Instructions by name: a thin layer over llvmlite with which the micro-kernels and packers are written.

`emitted` turns a Python function into a Numba intrinsic: when Numba compiles a call of it, the function runs once and
writes LLVM instructions into the caller. Its arguments then are values of the compiled program, all of them int64:
memory addresses, distances in bytes, and counts.

    @emitted
    def add_eight(e, x, y, out):
        kind = vector(f32, 8)
        e.store(e.add(e.load(kind, x), e.load(kind, y)), out)

LLVM chooses registers and the order of instructions. Where the target lacks 512-bit registers a vector of 16 float32
becomes two of 8, so vectors may have any length; only the intrinsics of one processor (`call("llvm.x86...")`) must not
be emitted elsewhere (target.py).
"""

import inspect

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

i8, i16, i32, i64, f32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
void, pointer = ir.VoidType(), ir.PointerType()


class _BFloat16(ir.Type):
    """LLVM's type bfloat, which llvmlite lacks."""

    def _to_string(self):
        return "bfloat"

    def __eq__(self, other):
        return isinstance(other, _BFloat16)

    def __hash__(self):
        return hash(_BFloat16)


bf16 = _BFloat16()


def vector(element, n):
    """The type of a vector of n elements."""
    return ir.VectorType(element, n)


def emitted(generate):
    """An intrinsic for Numba functions that writes what generate(e, *arguments) emits."""
    n = len(inspect.signature(generate).parameters) - 1           # all but e

    def codegen(context, builder, signature, args):
        generate(Emit(builder), *args)
        return ir.Constant(i64, 0)

    def typed(typingctx, *args):
        return types.int64(*[types.int64] * n), codegen

    typed.__name__ = generate.__name__
    typed.__signature__ = inspect.signature(generate)             # Numba asks for the names; e stands for typingctx
    return intrinsic(typed)


class Emit:
    """Writes instructions at the builder's position. Addresses and numbers are i64 values or Python integers."""

    def __init__(self, builder):
        self.builder = builder

    def number(self, value):
        """A Python integer as an i64."""
        return ir.Constant(i64, value) if isinstance(value, int) else value

    def add(self, a, b):
        """a + b: integers, or vectors of float32."""
        a, b = self.number(a), self.number(b)
        return self.builder.add(a, b) if a.type == i64 else self.builder.fadd(a, b)

    def mul(self, a, b):
        return self.builder.mul(self.number(a), self.number(b))

    def load(self, kind, address, align=4):
        """A value of this type from memory; align: what the address is a multiple of."""
        return self.builder.load(self.pointer(address), align=align, typ=kind)

    def store(self, value, address, align=4):
        self.builder.store(value, self.pointer(address), align=align)

    def prefetch(self, address):
        """Start to read the cache line at this address. It may be past the end of an array: nothing happens then."""
        line = self.pointer(address)
        self.call("llvm.prefetch.p0", void, line, *(ir.Constant(i32, how) for how in (0, 3, 1)))    # read, keep, data

    def pointer(self, address):
        return self.builder.inttoptr(self.number(address), pointer)

    def zeros(self, kind):
        return ir.Constant(kind, None)

    def repeat(self, value, n):
        """A vector of n copies of a value."""
        one = self.builder.insert_element(ir.Constant(vector(value.type, n), ir.Undefined), value, ir.Constant(i32, 0))
        return self.shuffle(one, one, [0] * n)

    def shuffle(self, a, b, lanes):
        """The elements of a followed by those of b, at these positions."""
        return self.builder.shuffle_vector(a, b, ir.Constant(vector(i32, len(lanes)), list(lanes)))

    def bitcast(self, value, kind):
        return self.builder.bitcast(value, kind)

    def multiply_add(self, a, b, c):
        """a b + c, rounded once where the target has such an instruction, else twice."""
        return self.call(f"llvm.fmuladd.v{a.type.count}f32", a.type, a, b, c)

    def call(self, name, result, *args):
        """An intrinsic of LLVM. A Python integer becomes an operand of 8 bits that is part of the instruction."""
        args = [ir.Constant(i8, a) if isinstance(a, int) else a for a in args]
        function = self.builder.module.globals.get(name)
        if function is None:
            kind = ir.FunctionType(result, [a.type for a in args])
            function = ir.Function(self.builder.module, kind, name)
        return self.builder.call(function, args)

    def loop(self, n, state, body):
        """for i in range(n), n at least 1: state = body(i, state). Returns the last state.

        The state, a list of values, stays in registers as far as there are any.
        """
        b = self.builder
        before, head, after = b.block, b.append_basic_block("loop"), b.append_basic_block("after")
        b.branch(head)
        b.position_at_end(head)
        i, values = b.phi(i64), [b.phi(value.type) for value in state]
        new = body(i, values)
        following = b.add(i, self.number(1))
        for phi, first, later in zip([i, *values], [self.number(0), *state], [following, *new]):
            phi.add_incoming(first, before)
            phi.add_incoming(later, b.block)
        b.cbranch(b.icmp_signed("<", following, self.number(n)), head, after)
        b.position_at_end(after)
        return new

    def switch(self, value, cases, write):
        """Write write(case) for each of these integers, to run where value is that case; nothing runs for others."""
        for case in cases:
            with self.builder.if_then(self.builder.icmp_signed("==", value, self.number(case))):
                write(case)
