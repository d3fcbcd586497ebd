"""float32 to bfloat16 and back on the CPU. Same formulas (tinygrad2/bfloat16.py); what changes, and what it bought:

- One pass, without temporaries, by all threads: the speed of memory.
- Large results have memory of their own, not the heap's. They wait while the arrays they were made from are freed: on
  the heap they would lie between the gaps that those leave (GPT-2 124M, 4 x 1024 tokens: 240 MB after forward).
- Rows that lie apart, such as those of q in the packed projection of q, k and v, are read in place.
"""

import numpy as np

from ops.kernels.cpu.numba_jit import inlined, jit
from ops.kernels.cpu.spread import spread
from tinygrad2.dispatch import register_kernel
from tinygrad2.system import huge_pages
from tinygrad2.system.threads import POOL

_GRAIN = 1 << 16                                                  # elements for which waking a thread pays
_INFINITE, _WITHOUT_SIGN = np.uint32(0x7F800000), np.uint32(0x7FFFFFFF)


def _takes_rows(values):
    fits = isinstance(values, np.ndarray) and values.dtype == np.float32 and values.ndim in (1, 2) and values.size
    return fits and values.flags.writeable and values.flags.aligned and _has_rows(values)


def _has_rows(values):
    return values.strides[-1] == 4 and values.strides[0] >= 4 and values.strides[0] % 4 == 0


@register_kernel("pack_bfloat16", "numpy", supports=_takes_rows)
def pack_bfloat16_cpu(values):
    """As pack_bfloat16."""
    packed = huge_pages.zeros(values.shape, np.uint16)
    if values.flags.c_contiguous:
        POOL.split(_pack, values.size, values.reshape(-1).view(np.uint32), packed.reshape(-1), grain=_GRAIN)
    else:
        (n, length), distance = values.shape, values.strides[0] // 4
        extent = (n - 1) * distance + length                      # with what lies between the rows
        memory = np.lib.stride_tricks.as_strided(values, (extent,), (4,))
        POOL.split(_pack_rows, n, memory.view(np.uint32), distance, packed, grain=-(-_GRAIN // length))
    return packed


@register_kernel("unpack_bfloat16", "numpy",
                 supports=lambda packed: isinstance(packed, np.ndarray) and packed.dtype == np.uint16
                 and packed.ndim == 1 and packed.flags.writeable and packed.flags.c_contiguous)  # fmt: skip
def unpack_bfloat16_cpu(packed):
    """As unpack_bfloat16."""
    values = np.empty(packed.shape, np.uint32)
    POOL.split(_unpack, len(packed), packed, values, grain=_GRAIN)
    return values.view(np.float32)


@inlined
def round_bits(bits):
    """The upper half of the float32 with these 32 bits, rounded."""
    up = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded = np.uint32(bits + up) >> np.uint32(16)               # in 32 bits: twice the elements per register
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    return quiet if np.uint32(bits & _WITHOUT_SIGN) > _INFINITE else rounded


@jit
def _pack(lo, hi, bits, packed):
    if spread(lo, hi):
        return
    bits, packed = bits[lo:hi], packed[lo:hi]
    for i in range(packed.size):
        packed[i] = round_bits(bits[i])


@jit
def _pack_rows(lo, hi, bits, distance, packed):
    if spread(lo, hi):
        return
    for n in range(lo, hi):
        target = packed[n]
        row = bits[n * distance : n * distance + target.size]
        for i in range(target.size):
            target[i] = round_bits(row[i])


@jit
def _unpack(lo, hi, packed, bits):
    if spread(lo, hi):
        return
    packed, bits = packed[lo:hi], bits[lo:hi]
    for i in range(bits.size):
        bits[i] = packed[i] << 16
