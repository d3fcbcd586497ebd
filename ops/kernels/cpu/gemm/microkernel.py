"""Micro-kernels on vector registers: a block of C that stays in registers while K passes by.

All have one form. For each unit along K: load the block's units of B as whole vectors, then for each row repeat one
unit of A in all lanes and multiply-add. A block of 8 rows x 48 columns takes 24 registers for sums and 3 for B, of 32;
the repeated unit is an operand from memory. That makes 3 + 8 instructions that load for 24 that multiply and add 16
numbers each: a processor that starts one of each per cycle is kept busy by arithmetic, not by loads. One sum is added
to every 24 instructions, longer than an addition takes (4 to 6 cycles), so none waits.

    name      block     registers           a unit of K
    vector    4 x 16    8 float32 (AVX2)    one number; LLVM fits the code to any processor
    avx512    8 x 48    16 float32          one number
    bf16      8 x 48    16 pairs            two numbers: sum + a0 b0 + a1 b1, one instruction (vdpbf16ps)

The instruction of AVX512-BF16 multiplies bfloat16 exactly, adds in float32, and takes subnormal numbers as zeros.
"""

from ops.kernels.cpu.gemm.emit import bf16, emitted, f32, i32, vector
from ops.kernels.cpu.gemm.target import has
from ops.kernels.cpu.gemm.tiles import LINES, TILE


def _float32_unit(e, sums, a, b):
    repeated = e.repeat(e.load(f32, a), b.type.count)
    return e.multiply_add(repeated, b, sums)


def _pair_unit(e, sums, a, b):
    pairs = vector(bf16, 32)
    repeated = e.bitcast(e.repeat(e.load(i32, a), 16), pairs)
    b = e.bitcast(b, pairs)
    return e.call("llvm.x86.avx512bf16.dpbf16ps.512", sums.type, sums, repeated, b)


def _block(rows, vectors, lanes, multiply, needs):
    """The intrinsic for a block of `rows` x (`vectors` x `lanes`) of C, for targets that have the features `needs`."""
    sums_kind = vector(f32, lanes)
    units_kind = vector(i32 if multiply is _pair_unit else f32, lanes)
    block = [(r, v) for r in range(rows) for v in range(vectors)]
    size = 4 * lanes                                              # bytes of a vector

    def tile_of_vector(e, b, v, b_panel):
        """Where vector v of each line of B begins: a panel has 64 bytes of a line."""
        panel, offset = divmod(v * size, 64)
        return e.add(e.add(b, e.mul(b_panel, panel)), offset)

    def place(e, base, distance, r, v):
        """The address of vector v of row r."""
        row = e.add(base, e.mul(distance, r))
        return e.add(row, v * size)

    @emitted
    def multiply_block(e, a, b, b_panel, steps, start, start_stride, c, stride):
        if not has(*needs):
            return  # never called there
        b_vectors = [tile_of_vector(e, b, v, b_panel) for v in range(vectors)]

        def step(i, sums):
            offset = e.mul(i, TILE)
            a_tile = e.add(a, offset)
            b_tiles = [e.add(base, offset) for base in b_vectors]
            for unit in range(LINES):
                line = [e.load(units_kind, e.add(tile, 64 * unit), size) for tile in b_tiles]
                at = [e.add(a_tile, 64 * r + 4 * unit) for r in range(rows)]
                sums = [multiply(e, total, at[r], line[v]) for total, (r, v) in zip(sums, block)]
            return sums

        zeros = [e.zeros(sums_kind)] * len(block)
        sums = e.loop(steps, zeros, step)
        for (r, v), total in zip(block, sums):
            first = e.load(sums_kind, place(e, start, start_stride, r, v), align=1)
            total = e.add(first, total)
            e.store(total, place(e, c, stride, r, v), align=1)

    return multiply_block


# C = start + A B for one block. a: the block's first row in a tile of A; b: the first of the block's panels of B,
# `b_panel` bytes apart; `steps` tiles along K. start and c: rows of float32, `start_stride` and `stride` bytes apart
# (a start_stride of 0 repeats one row).
_AVX512, _AVX512_BF16 = ("avx512f",), ("avx512bf16", "avx512bw")
vector_4x16 = _block(4, 2, 8, _float32_unit, ())
avx512_8x16, avx512_8x32, avx512_8x48 = [_block(8, n, 16, _float32_unit, _AVX512) for n in (1, 2, 3)]
bf16_8x16, bf16_8x32, bf16_8x48 = [_block(8, n, 16, _pair_unit, _AVX512_BF16) for n in (1, 2, 3)]
