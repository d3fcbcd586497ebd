"""A stand-in for AMX's tile registers, so that the kernel that uses them runs on processors without.

It has the methods of `ops.kernels.cpu.gemm.amx.Tiles`, and emits plain vector code instead of tile instructions. A
register is 1 KiB of a global array (so one thread at a time), and its arithmetic that of the instruction: bfloat16
products are exact in float32, sums are float32, pair by pair along K.
"""

from llvmlite import ir

from ops.kernels.cpu.gemm.emit import f32, i8, i32, pointer, vector

_LINE = vector(i32, 16)
_SUMS = vector(f32, 16)


class StandInTiles:
    def __init__(self, e):
        self.e = e
        kind = ir.ArrayType(i8, 8 * 1024)
        memory = e.builder.module.globals.get("stand_in_tiles")
        if memory is None:
            memory = ir.GlobalVariable(e.builder.module, kind, "stand_in_tiles")
            memory.initializer, memory.linkage, memory.align = ir.Constant(kind, None), "internal", 64
        self.registers = e.builder.ptrtoint(e.builder.bitcast(memory, pointer), ir.IntType(64))

    def begin(self):
        pass

    def end(self):
        pass

    def _line(self, register, r):
        return self.e.add(self.registers, self.e.add(1024 * register, self.e.mul(r, 64)))

    def load(self, register, address, stride):
        def line(r, state):
            values = self.e.load(_LINE, self.e.add(address, self.e.mul(stride, r)))
            self.e.store(values, self._line(register, r))
            return []

        self.e.loop(16, [], line)

    def store(self, register, address, stride):
        def line(r, state):
            values = self.e.load(_LINE, self._line(register, r))
            self.e.store(values, self.e.add(address, self.e.mul(stride, r)))
            return []

        self.e.loop(16, [], line)

    def multiply_add(self, sums, a, b):
        e = self.e

        def row(r, state):
            def pair(p, state):
                two = e.repeat(e.load(i32, e.add(self._line(a, r), e.mul(p, 4))), 16)
                line, (total,) = e.load(_LINE, self._line(b, p)), state
                for half in (self._upper, self._lower):           # the instruction adds the odd number of a pair first
                    total = e.multiply_add(half(two), half(line), total)
                return [total]

            (total,) = e.loop(16, [e.load(_SUMS, self._line(sums, r))], pair)
            e.store(total, self._line(sums, r))
            return []

        e.loop(16, [], row)

    def _upper(self, pairs):
        """The second bfloat16 of each pair, as float32: its bits are a float32's upper half."""
        mask = ir.Constant(_LINE, [0xFFFF0000] * 16)
        return self.e.bitcast(self.e.builder.and_(pairs, mask), _SUMS)

    def _lower(self, pairs):
        return self.e.bitcast(self.e.builder.shl(pairs, ir.Constant(_LINE, [16] * 16)), _SUMS)
