"""What one core can do at most: arithmetic on registers alone, and loads from its first cache."""

import numpy as np
from numba import njit

from ops.kernels.cpu.gemm.emit import bf16, emitted, f32, vector
from ops.kernels.cpu.gemm.target import available, has

_SUMS, _UNROLLED = 12, 16
L1_BYTES = 16384


def _float32_peak(lanes, needs):
    @emitted
    def multiply_add(e, n, memory):
        if has(*needs):
            x = e.load(vector(f32, lanes), memory)
            _sums(e, n, memory, [x] * _SUMS, lambda total: e.multiply_add(x, x, total))

    return multiply_add


@emitted
def _bf16_peak(e, n, memory):
    if has("avx512bf16", "avx512bw"):
        total = e.load(vector(f32, 16), memory)
        pairs = e.bitcast(total, vector(bf16, 32))
        name = "llvm.x86.avx512bf16.dpbf16ps.512"
        _sums(e, n, memory, [total] * _SUMS, lambda total: e.call(name, total.type, total, pairs, pairs))


@emitted
def _amx_peak(e, n, memory):
    if has("amx-tile", "amx-bf16"):
        from ops.kernels.cpu.gemm.amx import Tiles

        tiles = Tiles(e)
        tiles.begin()
        for register in range(8):
            tiles.load(register, memory, e.number(64))

        def four(i, state):
            for sums in range(4):
                tiles.multiply_add(sums, 6 + sums // 2, 4 + sums % 2)
            return []

        e.loop(n, [], four)
        tiles.end()


def _sums(e, n, memory, start, step):
    """Run `step` on each of the sums n times; they are stored, so that the compiler keeps the work."""
    for i, total in enumerate(e.loop(n, start, lambda i, sums: [step(one) for one in sums])):
        e.store(total, e.add(memory, 64 * i))


@emitted
def _read(e, n, memory):
    """Load 16 KiB n times, as vectors of 16 float32, each added to one of 16 sums."""
    kind = vector(f32, 16)

    def one_pass(i, sums):
        def some(j, sums):
            at = e.add(memory, e.mul(j, 64 * _UNROLLED))
            return [e.add(total, e.load(kind, e.add(at, 64 * k))) for k, total in enumerate(sums)]

        return e.loop(L1_BYTES // (64 * _UNROLLED), sums, some)

    for i, total in enumerate(e.loop(n, [e.load(kind, memory)] * _UNROLLED, one_pass)):
        e.store(total, e.add(memory, 64 * i))


_vector, _avx512 = _float32_peak(8, ()), _float32_peak(16, ("avx512f",))


@njit(nogil=True)
def _run(kernel, n, memory):
    if kernel == 0:
        _vector(n, memory)
    elif kernel == 1:
        _avx512(n, memory)
    elif kernel == 2:
        _bf16_peak(n, memory)
    elif kernel == 3:
        _amx_peak(n, memory)
    else:
        _read(n, memory)


# name -> (its number above, floating-point operations of one round)
_PEAKS = {
    "vector": (0, 2 * 8 * _SUMS),
    "avx512": (1, 2 * 16 * _SUMS),
    "bf16": (2, 4 * 16 * _SUMS),
    "amx": (3, 4 * 2 * 16 * 16 * 32),
}


def limits():
    """{name: (function of the number of rounds, what a round is: FLOP, or bytes for "L1")} for what runs here."""
    memory = np.zeros(L1_BYTES + 64, np.uint8)
    address = memory.ctypes.data + -memory.ctypes.data % 64
    found = {}
    for name, (number, flops) in _PEAKS.items():
        if available(name):
            found[name] = (lambda n, number=number, keep=memory: _run(number, n, address)), flops
    found["L1"] = (lambda n, keep=memory: _run(4, n, address)), L1_BYTES
    return found
