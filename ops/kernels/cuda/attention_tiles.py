"""Which kernels attention.py launches: on tensor cores by the size of the heads, or plain ones; with their sizes."""

import functools
from typing import NamedTuple

import numpy as np

from tinygrad2.halves import is_half


class Block(NamedTuple):
    """Of a kernel: threads of a block, rows that it owns (queries, or keys for dk and dv), bytes of shared memory."""

    threads: int
    rows: int
    shared: int


class Tiles(NamedTuple):
    """Kernels for a size of heads: their file and names, and what a block has in forward, dkdv and dq."""

    file: str
    prefix: str
    blocks: dict[str, Block]


_PLAIN = {"forward": Block(256, 64, 0), "dkdv": Block(256, 64, 3 * 4 * 64 * 65), "dq": Block(256, 64, 0)}
PLAIN = {hs: Tiles(f"attention_plain_{hs}", "attention_plain", _PLAIN) for hs in (64, 256)}


def _tiles_of(file, HS, rows, keys, queries, size=2):
    """The kernels of FILE.cu, for tiles (keys, HS) and, for dk and dv, (queries, HS). An element has `size` bytes."""
    blocks = {
        "forward": Block(128, rows, size * HS * (rows + 4 * keys)),
        "dkdv": Block(128, 64, 2 * size * HS * (64 + 2 * queries) + 16 * queries),
        "dq": Block(128, 64, 2 * size * HS * (64 + 2 * keys)),
    }
    return Tiles(file, "attention", blocks)


TENSOR_CORES = {  # (head sizes up to, with dropout): kernels
    (64, False): _tiles_of("attention_64", 64, 128, 64, 64),
    (64, True): _tiles_of("attention_64_dropout", 64, 64, 64, 64),
    (128, False): _tiles_of("attention_128", 128, 64, 32, 32),
    (128, True): _tiles_of("attention_128_dropout", 128, 64, 32, 16),
}
TF32 = {  # the same for float32
    (64, False): _tiles_of("attention_tf32_64", 64, 128, 32, 32, 4),
    (64, True): _tiles_of("attention_tf32_64_dropout", 64, 64, 32, 32, 4),
    (128, False): _tiles_of("attention_tf32_128", 128, 64, 16, 16, 4),
    (128, True): _tiles_of("attention_tf32_128_dropout", 128, 64, 16, 8, 4),
}


def tiles_for(xp, dtype, hs, p, precision="highest"):
    """The kernels for heads of this size on this GPU; p: of dropout; precision: of products of float32 numbers."""
    number = capability(xp)
    if dtype == np.float32 and precision in ("high", "medium") and hs <= 128 and number >= 80:
        return TF32[64 if hs <= 64 else 128, p > 0]
    fits = is_half(dtype) and hs <= 128 and number >= 75
    if number < 80:                                               # no bfloat16, and less shared memory
        fits = fits and dtype == np.float16 and hs <= 64
    return TENSOR_CORES[64 if hs <= 64 else 128, p > 0] if fits else PLAIN[64 if hs <= 64 else 256]


@functools.cache
def capability(xp):
    """That of the GPU: 90 is compute capability 9.0."""
    return int(xp.cuda.Device().compute_capability)
