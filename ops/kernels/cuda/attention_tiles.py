"""Which kernels attention.py launches: on tensor cores by the size of the heads, or plain ones; with their sizes."""

import functools
from typing import NamedTuple

import numpy as np

from tinygrad2.halves import is_half


class Tiles(NamedTuple):
    """Kernels for a size of heads: their file and names, queries of a block in forward, bytes of shared memory."""

    file: str
    prefix: str
    threads: int
    rows: int
    shared: dict[str, int]


_PLAIN = {"forward": 0, "dkdv": 3 * 4 * 64 * 65, "dq": 0}
PLAIN = {hs: Tiles(f"attention_plain_{hs}", "attention_plain", 256, 64, _PLAIN) for hs in (64, 256)}


def _tiles_of(file, HS, rows, keys, queries):
    """The kernels of FILE.cu, for tiles (keys, HS) and, for dk and dv, (queries, HS). An element has 2 bytes."""
    shared = {
        "forward": 2 * HS * (rows + 4 * keys),
        "dkdv": 4 * HS * (64 + 2 * queries) + 16 * queries,
        "dq": 4 * HS * (64 + 2 * keys),
    }
    return Tiles(file, "attention", 128, rows, shared)


TENSOR_CORES = {  # (head sizes up to, with dropout): kernels
    (64, False): _tiles_of("attention_64", 64, 128, 64, 64),
    (64, True): _tiles_of("attention_64_dropout", 64, 64, 64, 64),
    (128, False): _tiles_of("attention_128", 128, 64, 32, 32),
    (128, True): _tiles_of("attention_128_dropout", 128, 64, 32, 16),
}


def tiles_for(xp, dtype, hs, p):
    """The kernels for heads of this size on this GPU; p: of dropout."""
    capability = _capability(xp)
    fits = is_half(dtype) and hs <= 128 and capability >= 75
    if capability < 80:                                           # no bfloat16, and less shared memory
        fits = fits and dtype == np.float16 and hs <= 64
    return TENSOR_CORES[64 if hs <= 64 else 128, p > 0] if fits else PLAIN[64 if hs <= 64 else 256]


@functools.cache
def _capability(xp):
    return int(xp.cuda.Device().compute_capability)
