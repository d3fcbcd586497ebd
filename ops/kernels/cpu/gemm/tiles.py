"""A tile from memory to memory: 16 x 16 units, converted and transposed in registers. packing.py says what a tile is.

There are four intrinsics: for numbers that are neighbours along K or across it, and for tiles that must be transposed
or not. Each is called with (parts, source, stride, to): how many bfloat16 numbers stand for a float32, or 0 for float32
itself; the address of the first number; the distance of rows in bytes (along) or of neighbours along K (across); and
where the tile goes, a multiple of 64. Further parts go to further tiles.
"""

from llvmlite import ir

from ops.kernels.cpu.gemm.emit import bf16, emitted, f32, i16, i32, vector
from ops.kernels.cpu.gemm.target import has
from ops.kernels.cpu.numba_jit import inlined

LINES, TILE = 16, 1024
_CONVERTS = "avx512bf16", "avx512bw"                            # the features that convert float32 to bfloat16

_UNITS, _FLOATS = vector(i32, 16), vector(f32, 16)
_INTERLEAVED = [lane for pair in zip(range(16), range(16, 32)) for lane in pair]


def _to_bfloat16(e, first, second, parts):
    """Two vectors of 16 float32 as 32 bfloat16, once for each part: the nearest to what the parts before it leave.

    Rounds to nearest, ties to even; subnormal numbers become zero. The subtraction is exact. ops/bfloat16.py: split.
    Processors that multiply bfloat16 have an instruction for it; the others do it bit by bit.
    """
    narrow, widen = (_rounded, _widened) if has(*_CONVERTS) else (_rounded_bits, _widened_bits)
    rest, found = e.shuffle(first, second, range(32)), []
    for _ in range(parts):
        found.append(narrow(e, rest))
        rest = e.builder.fsub(rest, widen(e, found[-1]))
    return found


def _rounded(e, x):
    return e.builder.fptrunc(x, vector(bf16, 32))


def _widened(e, x):
    return e.builder.fpext(x, vector(f32, 32))


def _rounded_bits(e, x):
    """32 float32 as 32 bfloat16 in integers of 16 bits: the arithmetic of ops/bfloat16.py, round_to_bfloat16."""
    b, wide = e.builder, vector(i32, 32)

    def all_lanes(value):
        return ir.Constant(wide, [value] * 32)

    bits = e.bitcast(x, wide)
    size, upper = b.and_(bits, all_lanes(0x7FFFFFFF)), b.lshr(bits, all_lanes(16))
    last = b.and_(upper, all_lanes(1))
    nearest = b.lshr(b.add(b.add(bits, last), all_lanes(0x7FFF)), all_lanes(16))
    quiet, zero = b.or_(upper, all_lanes(0x40)), b.and_(upper, all_lanes(0x8000))
    nearest = b.select(b.icmp_unsigned(">", size, all_lanes(0x7F800000)), quiet, nearest)
    nearest = b.select(b.icmp_unsigned("<", size, all_lanes(0x00800000)), zero, nearest)
    return b.trunc(nearest, vector(i16, 32))


def _widened_bits(e, x):
    wide = vector(i32, 32)
    return e.bitcast(e.builder.shl(e.builder.zext(x, wide), ir.Constant(wide, [16] * 32)), vector(f32, 32))


def parts_needed():
    """The numbers of parts with which a tile is packed for the kernels of this processor."""
    if has("amx-tile"):
        return [0, 1, 2, 3]
    return [0, 1] if has(*_CONVERTS) else [0]


def _line_along(e, parts, source):
    """16 units of one row whose numbers along K are neighbours: a vector for each part."""
    if parts == 0:
        return [e.load(_UNITS, source, align=1)]
    numbers = [e.load(_FLOATS, e.add(source, 64 * half), align=1) for half in (0, 1)]
    return [e.bitcast(part, _UNITS) for part in _to_bfloat16(e, *numbers, parts)]


def _line_across(e, parts, source, k_stride):
    """One unit of 16 rows (or columns) that are neighbours in memory: a vector for each part."""
    if parts == 0:
        return [e.load(_UNITS, source, align=1)]
    numbers = [e.load(_FLOATS, at, align=1) for at in (source, e.add(source, k_stride))]
    pairs = _to_bfloat16(e, *numbers, parts)
    return [e.bitcast(e.shuffle(pair, pair, _INTERLEAVED), _UNITS) for pair in pairs]


def _transposed(e, lines):
    """16 vectors of 16 units, transposed: four rounds of exchanges between pairs of lines.

    A round with distance d exchanges the upper d x d corner of each 2d x 2d block with the lower one.
    """
    for d in (1, 2, 4, 8):
        kept = [lane if lane & d == 0 else 16 + lane - d for lane in range(16)]
        moved = [lane + d if lane & d == 0 else 16 + lane for lane in range(16)]
        new = list(lines)
        for r in range(16):
            if r & d == 0:
                new[r] = e.shuffle(lines[r], lines[r + d], kept)
                new[r + d] = e.shuffle(lines[r], lines[r + d], moved)
        lines = new
    return lines


def _tile(along, transpose):
    """The intrinsic for one kind of tile."""

    def write(e, parts, source, stride, to):
        lines = []
        for _ in range(LINES):
            lines.append(_line_along(e, parts, source) if along else _line_across(e, parts, source, stride))
            source = e.add(source, stride if along else e.mul(stride, 2 if parts else 1))
        for part, of_part in enumerate(zip(*lines)):
            for r, line in enumerate(_transposed(e, of_part) if transpose else of_part):
                e.store(line, e.add(to, TILE * part + 64 * r), align=64)

    @emitted
    def tile(e, parts, source, stride, to):
        e.switch(parts, parts_needed(), lambda kind: write(e, kind, source, stride, to))

    return tile


_along, _across = _tile(True, False), _tile(False, False)
_along_turned, _across_turned = _tile(True, True), _tile(False, True)


@inlined
def pack_tile(parts, along, transpose, at, stride, to):
    """The intrinsic for this case."""
    if along:
        if transpose:
            _along_turned(parts, at, stride, to)
        else:
            _along(parts, at, stride, to)
    elif transpose:
        _across_turned(parts, at, stride, to)
    else:
        _across(parts, at, stride, to)
