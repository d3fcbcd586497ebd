"""A tile from memory to memory: 16 x 16 units, converted and transposed in registers. packing.py says what a tile is.

There are eight intrinsics: for float32 and for pairs of bfloat16, for numbers that are neighbours along K or across it,
and for tiles that must be transposed or not. Each is called with (source, stride, to): the address of the first number,
the distance of rows in bytes (along) or of neighbours along K (across), and where the tile goes, a multiple of 64.
"""

from ops.kernels.cpu.gemm.emit import bf16, emitted, f32, i32, vector
from ops.kernels.cpu.gemm.target import has
from ops.kernels.cpu.numba_jit import inlined

LINES = 16
_UNITS, _FLOATS = vector(i32, 16), vector(f32, 16)
_INTERLEAVED = [lane for pair in zip(range(16), range(16, 32)) for lane in pair]


def _to_bfloat16(e, first, second):
    """Two vectors of 16 float32 as 32 bfloat16: round to nearest, ties to even; subnormal numbers become zero."""
    both = e.shuffle(first, second, range(32))
    return e.builder.fptrunc(both, vector(bf16, 32))


def _line_along(e, unit, source):
    """16 units of one row whose numbers along K are neighbours."""
    if unit == 1:
        return e.load(_UNITS, source, align=1)
    numbers = [e.load(_FLOATS, e.add(source, 64 * half), align=1) for half in (0, 1)]
    return e.bitcast(_to_bfloat16(e, *numbers), _UNITS)


def _line_across(e, unit, source, k_stride):
    """One unit of 16 rows (or columns) that are neighbours in memory."""
    if unit == 1:
        return e.load(_UNITS, source, align=1)
    numbers = [e.load(_FLOATS, at, align=1) for at in (source, e.add(source, k_stride))]
    pairs = _to_bfloat16(e, *numbers)
    return e.bitcast(e.shuffle(pairs, pairs, _INTERLEAVED), _UNITS)


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


def _tile(unit, along, transpose):
    """The intrinsic for one kind of tile."""

    @emitted
    def tile(e, source, stride, to):
        if unit == 2 and not has("avx512bf16", "avx512bw"):
            return  # never called there
        lines = []
        for _ in range(LINES):
            lines.append(_line_along(e, unit, source) if along else _line_across(e, unit, source, stride))
            source = e.add(source, stride if along else e.mul(stride, unit))
        for r, line in enumerate(_transposed(e, lines) if transpose else lines):
            e.store(line, e.add(to, 64 * r), align=64)

    return tile


_float32_along, _float32_across = _tile(1, True, False), _tile(1, False, False)
_float32_along_turned, _float32_across_turned = _tile(1, True, True), _tile(1, False, True)
_pairs_along, _pairs_across = _tile(2, True, False), _tile(2, False, False)
_pairs_along_turned, _pairs_across_turned = _tile(2, True, True), _tile(2, False, True)


@inlined
def pack_tile(unit, along, transpose, at, stride, to):
    """The intrinsic for this case."""
    if unit == 1:
        if along:
            if transpose:
                _float32_along_turned(at, stride, to)
            else:
                _float32_along(at, stride, to)
        elif transpose:
            _float32_across_turned(at, stride, to)
        else:
            _float32_across(at, stride, to)
    elif along:
        if transpose:
            _pairs_along_turned(at, stride, to)
        else:
            _pairs_along(at, stride, to)
    elif transpose:
        _pairs_across_turned(at, stride, to)
    else:
        _pairs_across(at, stride, to)
