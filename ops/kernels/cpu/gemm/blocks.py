"""The loops around a micro-kernel: blocks of A, of K and of B, each packed into the cache that it fits."""

from ops.kernels.cpu.gemm.amx import amx_32x32, begin_tiles, end_tiles
from ops.kernels.cpu.gemm.microkernel import (
    avx512_8x16,
    avx512_8x32,
    avx512_8x48,
    bf16_8x16,
    bf16_8x32,
    bf16_8x48,
    vector_4x16,
)
from ops.kernels.cpu.gemm.packing import CORNER_BYTES, copy_float, pack
from ops.kernels.cpu.gemm.tiles import LINES, TILE
from ops.kernels.cpu.numba_jit import inlined

VECTOR, AVX512, BF16, AMX = range(4)                              # the micro-kernels, as numbers

# kernel -> (micro-kernel, parts: see packing.py, rows and columns of a block of C)
KERNELS = {
    "vector": (VECTOR, 0, 4, 16),
    "avx512": (AVX512, 0, 8, 48),
    "bf16": (BF16, 1, 8, 48),
    "amx": (AMX, 1, 32, 32),
    "amx x3": (AMX, 2, 32, 32),                                   # three products of two parts
    "amx x6": (AMX, 3, 32, 32),                                   # six of three
}

# What is packed at a time. DEPTH units along K of one block of rows of A are 12 KiB (8 rows) to 48 KiB (32): the L1
# cache. DEPTH x STRIP units of B are 720 KiB: the L2 cache. DEPTH x ROWS units of A are 1.4 MiB: the L3 cache.
DEPTH, STRIP, ROWS = 384, 480, 960

_SPARE = 2                                                        # panels that a block may read beyond those packed
_EDGE_STRIDE = 4 * 48                                             # a whole block of C
_EDGE_BYTES = 32 * _EDGE_STRIDE
A_BYTES, B_BYTES = 4 * DEPTH * (ROWS + 16 * _SPARE), 4 * DEPTH * (STRIP + 16 * _SPARE)
SCRATCH_BYTES = CORNER_BYTES + _EDGE_BYTES + A_BYTES + B_BYTES


@inlined
def _multiply_block(kernel, parts, columns, a, b, panel, steps, start, start_stride, c, stride):
    if kernel == AMX:
        amx_32x32(parts, a, panel, b, panel, steps, start, start_stride, c, stride)
    elif kernel == VECTOR:
        vector_4x16(a, b, panel, steps, start, start_stride, c, stride)
    elif kernel == AVX512:
        if columns > 32:
            avx512_8x48(a, b, panel, steps, start, start_stride, c, stride)
        elif columns > 16:
            avx512_8x32(a, b, panel, steps, start, start_stride, c, stride)
        else:
            avx512_8x16(a, b, panel, steps, start, start_stride, c, stride)
    elif columns > 32:
        bf16_8x48(a, b, panel, steps, start, start_stride, c, stride)
    elif columns > 16:
        bf16_8x32(a, b, panel, steps, start, start_stride, c, stride)
    else:
        bf16_8x16(a, b, panel, steps, start, start_stride, c, stride)


@inlined
def _copy(rows, columns, source, source_stride, to, stride):
    for r in range(rows):
        for n in range(columns):
            copy_float(source + r * source_stride + 4 * n, to + r * stride + 4 * n)


@inlined
def _multiply_packed(kernel, parts, M, N, steps, a, b, panel_bytes, start, start_stride, c, stride, edge):
    """C (M, N) = start + A B from packed panels. A block of rows of A meets all of B before the next one comes."""
    rows = 32 if kernel == AMX else 4 if kernel == VECTOR else 8
    columns = 32 if kernel == AMX else 16 if kernel == VECTOR else 48
    for m in range(0, M, rows):
        at_a = a + m // 16 * panel_bytes + m % 16 * 64
        for n in range(0, N, columns):
            at_b = b + n // 16 * panel_bytes
            start_at, to = start + m * start_stride + 4 * n, c + m * stride + 4 * n
            height, width = min(rows, M - m), min(columns, N - n)
            whole = height == rows and (width == columns or kernel in (AVX512, BF16) and width % 16 == 0)
            first, first_stride, goal, goal_stride = start_at, start_stride, to, stride
            if not whole:                                         # only a part is in C: by way of a whole block
                _copy(height, width, start_at, start_stride, edge, _EDGE_STRIDE)
                first, first_stride, goal, goal_stride = edge, _EDGE_STRIDE, edge, _EDGE_STRIDE
            _multiply_block(
                kernel, parts, width, at_a, at_b, panel_bytes, steps, first, first_stride, goal, goal_stride
            )  # fmt: skip
            if not whole:
                _copy(height, width, edge, _EDGE_STRIDE, to, stride)


@inlined
def multiply_part(m_lo, m_hi, n_lo, n_hi, K, kernel, parts, depth, a, b, start, start_stride, c, stride, scratch):
    """C[m_lo:m_hi, n_lo:n_hi] = start + A B by one thread.

    a, b                (address, distance along M or N, distance along K) of the float32 matrices, in bytes
    depth               numbers along K that are packed at a time
    start, c            addresses of float32 rows, start_stride and stride bytes apart
    scratch             the address of SCRATCH_BYTES, a multiple of 64
    """
    a_at, a_row, a_k = a
    b_at, b_column, b_k = b
    length = 2 * LINES if parts else LINES                        # numbers along K in a tile
    corner, edge = scratch, scratch + CORNER_BYTES
    packed_a = edge + _EDGE_BYTES
    packed_b = packed_a + A_BYTES
    if kernel == AMX:
        begin_tiles()
    for m in range(m_lo, m_hi, ROWS):
        M = min(ROWS, m_hi - m)
        for k in range(0, K, depth):
            here = min(depth, K - k)
            steps = (here + length - 1) // length
            panel_bytes = steps * TILE * max(1, parts)
            first, first_stride = (start, start_stride) if k == 0 else (c, stride)
            pack(parts, False, a_at + m * a_row + k * a_k, a_row, a_k, M, here, packed_a, panel_bytes, corner)
            for n in range(n_lo, n_hi, STRIP):
                N = min(STRIP, n_hi - n)
                pack(parts, True, b_at + n * b_column + k * b_k, b_column, b_k, N, here, packed_b, panel_bytes, corner)
                at, to = first + m * first_stride + 4 * n, c + m * stride + 4 * n
                _multiply_packed(
                    kernel, parts, M, N, steps, packed_a, packed_b, panel_bytes, at, first_stride, to, stride, edge
                )  # fmt: skip
    if kernel == AMX:
        end_tiles()


def depth_at_a_time(K, parts):
    """K cut evenly into pieces whose parts have at most DEPTH units, each a whole number of tiles."""
    length = 2 * LINES if parts else LINES
    most = DEPTH // LINES // max(1, parts) * length
    pieces = max(1, -(-K // most))
    return -(-K // (length * pieces)) * length


def addresses(matrix, along_k):
    """What multiply_part wants to know of a matrix whose axis `along_k` is K."""
    return matrix.ctypes.data, matrix.strides[1 - along_k], matrix.strides[along_k]
