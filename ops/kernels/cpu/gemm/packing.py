"""Packing: a part of a float32 matrix of any layout becomes tiles, in the order in which the micro-kernels read them.

A tile has 16 lines of 16 *units* of 32 bits, 1 KiB: a unit is one float32 number (depth 16), or two neighbours along K
as bfloat16 (depth 32). So one packer serves all kernels. A number that is to be more exact than one bfloat16 becomes
two or three of them, its *parts*, each in a tile of its own, side by side.

    tile of A   line r: row r, 16 units along K        the bytes of a row that is read
    tile of B   line p: unit p of 16 columns           the bytes that meet one unit of A

A panel is 16 rows of A (16 columns of B), its tiles one after the other along K. What the matrix lacks is filled with
zeros. The tile of B is the transpose of that of A, as units; whether a tile must be transposed depends on the operand
and on which numbers are neighbours in memory:

    neighbours along        K                          M (or N)
    A                       convert                    convert pairs of rows, transpose
    B                       convert, transpose         convert pairs of rows

Conversion and transposition happen in registers on the way (tiles.py), so a matrix is read once and no other copy is
made. Any other layout, and the edges, are first copied to a small corner of zeros, number by number.
"""

from ops.kernels.cpu.gemm.emit import emitted, f32
from ops.kernels.cpu.gemm.tiles import LINES, TILE, pack_tile
from ops.kernels.cpu.numba_jit import inlined

CORNER_BYTES = 2 * TILE                                           # 16 x 32 float32

@emitted
def copy_float(e, source, to):
    """One float32 from an address to another."""
    e.store(e.load(f32, source, align=1), to, align=1)


@emitted
def put_zero(e, to):
    """A float32 zero at an address."""
    e.store(e.zeros(f32), to)


@inlined
def _corner(source, i_stride, k_stride, rows, depth, length, to):
    """`rows` rows of `depth` numbers, any distances apart, as 16 rows of `length` numbers: zeros elsewhere."""
    for r in range(LINES):
        for q in range(length):
            goal = to + 4 * (r * length + q)
            if r < rows and q < depth:
                copy_float(source + r * i_stride + q * k_stride, goal)
            else:
                put_zero(goal)


@inlined
def pack(parts, is_b, source, i_stride, k_stride, width, depth, to, panel_bytes, corner):
    """Pack A[:width, :depth], or B[:depth, :width] with is_b.

    parts               bfloat16 numbers that stand for one of the matrix: 1, 2 or 3; 0 for float32
    source              address of the first number; its neighbours along M (or N) and along K are i_stride and k_stride
                        bytes away
    to, panel_bytes     where the first panel goes, and how far apart panels are; a multiple of 64
    corner              CORNER_BYTES of memory for what is not a whole tile
    """
    length = 2 * LINES if parts else LINES
    step_bytes = TILE * max(1, parts)
    panels, steps = (width + 15) // 16, (depth + length - 1) // length
    for t in range(panels * steps):
        if k_stride == 4:                                         # follow the memory of the source
            panel, step = t // steps, t % steps
        else:
            step, panel = t // panels, t % panels
        rows, columns = min(16, width - 16 * panel), min(length, depth - length * step)
        at = source + 16 * panel * i_stride + length * step * k_stride
        goal = to + panel * panel_bytes + step * step_bytes
        along, stride = k_stride == 4, i_stride
        if rows < 16 or columns < length or not (along or i_stride == 4):
            _corner(at, i_stride, k_stride, rows, columns, length, corner)
            at, along, stride = corner, True, 4 * length
        elif not along:
            stride = k_stride
        pack_tile(parts, along, is_b == along, at, stride, goal)
