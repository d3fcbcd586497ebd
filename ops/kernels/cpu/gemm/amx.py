"""The micro-kernel on AMX tile registers: 32 x 32 of C, one instruction for 16 x 16 x 32 products.

A core with AMX has eight tile registers of 16 lines of 64 bytes, exactly our packed tiles:

    tdpbf16ps c, a, b:   c[r, n] += sum over p of  a[r, 2p] b[2p, n] + a[r, 2p+1] b[2p+1, n]     p = 0 .. 15

Registers 0 to 3 hold the sums of 2 x 2 tiles of C, 4 and 5 two tiles of B, 6 and 7 two of A: four loads for four
products, each loaded tile used twice. The instruction takes 16 cycles, and so do the two loads that go with it, which
come from the L1 and L2 caches.

**float32 from bfloat16.** A float32 number is nearly the sum of two bfloat16 numbers, and wholly of three. Three
products of two parts have an error of 4e-6, six of three parts float32's own, and on tiles even six are faster than
float32 arithmetic. Neighbouring products share an operand, which then is not loaded again.

The instruction computes as AVX512-BF16 does: exact products, sums in float32, subnormal numbers taken as zeros. Where
there are no tiles, the tests run this file on a stand-in for the registers (tests/tile_registers.py), and trainings
with each instruction trapped and computed (tests/emulated_tiles.py).
"""

import struct

from llvmlite import ir

from ops.bfloat16 import PRODUCTS
from ops.kernels.cpu.gemm.emit import emitted, i8, void
from ops.kernels.cpu.gemm.target import has
from ops.kernels.cpu.gemm.tiles import TILE

# ldtilecfg: palette 1, first row 0; bytes per line and lines of the eight registers
_SHAPES = struct.pack("<BB14x8H16x8B8x", 1, 0, *[64] * 8, *[16] * 8)


class Tiles:
    """The tile instructions, by numbers of registers."""

    def __init__(self, e):
        self.e = e

    def begin(self):
        """Set the shapes of this thread's registers."""
        name, kind = "tinygrad2_tile_shapes", ir.ArrayType(i8, len(_SHAPES))
        shapes = self.e.builder.module.globals.get(name)
        if shapes is None:
            shapes = ir.GlobalVariable(self.e.builder.module, kind, name)
            shapes.initializer = ir.Constant(kind, bytearray(_SHAPES))
            shapes.linkage, shapes.global_constant, shapes.align = "internal", True, 64
        self.e.call("llvm.x86.ldtilecfg", void, shapes)

    def end(self):
        """Give the registers back: the system then saves 8 KiB less when it switches threads."""
        self.e.call("llvm.x86.tilerelease", void)

    def load(self, register, address, stride):
        """16 lines of 64 bytes that are `stride` bytes apart."""
        self.e.call("llvm.x86.tileloadd64", void, register, self.e.pointer(address), stride)

    def store(self, register, address, stride):
        self.e.call("llvm.x86.tilestored64", void, register, self.e.pointer(address), stride)

    def multiply_add(self, sums, a, b):
        """sums += a b, all of them numbers of registers."""
        self.e.call("llvm.x86.tdpbf16ps", void, sums, a, b)


@emitted
def begin_tiles(e):
    """Before the first block of a thread."""
    if has("amx-tile", "amx-bf16"):
        Tiles(e).begin()


@emitted
def end_tiles(e):
    """After its last block."""
    if has("amx-tile", "amx-bf16"):
        Tiles(e).end()


@emitted
def amx_32x32(e, parts, a, a_panel, b, b_panel, steps, start, start_stride, c, stride):
    """C = start + A B for 32 x 32 of C: two panels of A, a_panel bytes apart; the rest is as in microkernel.py.

    parts: 1, 2 or 3 bfloat16 numbers stand for each float32, in neighbouring tiles. All their products go into the same
    sums, the smallest first.
    """
    if has("amx-tile", "amx-bf16"):                               # never called elsewhere
        block = (a, a_panel, b, b_panel, steps, start, start_stride, c, stride)
        e.switch(parts, PRODUCTS, lambda n: _block(e, n, *block))


def _block(e, parts, a, a_panel, b, b_panel, steps, start, start_stride, c, stride):
    tiles, line = Tiles(e), e.number(64)

    def each_sum(move, base, distance):
        for m in (0, 1):
            row = e.add(base, e.mul(distance, 16 * m))
            for n in (0, 1):
                move(2 * m + n, e.add(row, 64 * n), distance)

    def step(i, state):
        offset, held = e.mul(i, parts * TILE), {}

        def hold(register, base, panel, number, part):
            """Load a part of the first or second panel, unless the register has it already."""
            if held.get(register) != part:
                held[register] = part
                at = e.add(e.add(base, offset), e.mul(panel, number))
                tiles.load(register, e.add(at, part * TILE), line)

        for a_part, b_part in PRODUCTS[parts]:
            for m in (0, 1):
                hold(6 + m, a, a_panel, m, a_part)
                for n in (0, 1):
                    hold(4 + n, b, b_panel, n, b_part)
                    tiles.multiply_add(2 * m + n, 6 + m, 4 + n)
        return []

    each_sum(tiles.load, start, start_stride)
    e.loop(steps, [], step)
    each_sum(tiles.store, c, stride)
