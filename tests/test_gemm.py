"""The matrix products of ops/kernels/cpu/gemm: every kernel, layout, edge and special value against float64."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

import ops

if not ops.have_cpu_kernels():
    pytest.skip("Numba is not installed", allow_module_level=True)

import numba
from tile_registers import StandInTiles

from ops import bfloat16
from ops.bfloat16 import operand, split
from ops.kernels.cpu.gemm import amx, blocks, microkernel, packing, plain_loops, target, tiles
from ops.kernels.cpu.gemm.product import product
from ops.kernels.cpu.gemm.shares import Scratch
from ops.kernels.cpu.gemm.splittable import can_be_split, largest_of_lines
from tinygrad2.system.threads import POOL

KERNELS = list(blocks.KERNELS)
FLOAT32 = ["vector", "avx512"]
SHAPES = [(1, 1, 1), (8, 48, 16), (33, 70, 50), (17, 15, 33), (5, 1100, 31), (97, 31, 800), (130, 500, 1),
          (64, 64, 1537), (1000, 49, 40), (1, 300, 200), (200, 1, 7)]  # fmt: skip


@pytest.fixture(params=KERNELS)
def kernel(request):
    if not target.available(request.param):
        pytest.skip(f"this processor cannot run {request.param}")
    return request.param


def rounded(kernel, *matrices):
    """The numbers that the kernel multiplies, in float64."""
    exact = kernel not in ("bf16", "amx")
    return [np.asarray(m if exact else operand(np, m), np.float64, order="C") for m in matrices]


def exact_product(kernel, a, b):
    """a b in float64, of the numbers that the kernel multiplies: of "amx x3" the products of its two parts."""
    if kernel != "amx x3" or not bfloat16.can_be_split(np, a, b):
        return np.matmul(*rounded(kernel, a, b))
    a_parts, b_parts = ([part.astype(np.float64) for part in split(np, m, 2)] for m in (a, b))
    return sum(a_parts[i] @ b_parts[j] for i, j in bfloat16.PRODUCTS[2])


def matrix(rng, rows, columns, layout):
    """Normal numbers whose memory is in one of LAYOUTS."""
    wide = rng.standard_normal((rows, columns), dtype=np.float32)
    if layout == "transposed":
        return np.asfortranarray(wide)
    if layout == "sliced":
        whole = np.zeros((rows + 2, 2 * columns + 3), np.float32)
        part = whole[1 : rows + 1, 3 : columns + 3]
    elif layout == "reversed":
        part = np.zeros((2 * rows, 3 * columns), np.float32)[::-2, ::-3]
    elif layout == "unaligned":
        part = np.zeros(4 * rows * columns + 1, np.uint8)[1:].view(np.float32).reshape(rows, columns)
    else:
        return wide
    part[:] = wide
    return part


LAYOUTS = ["plain", "transposed", "sliced", "reversed", "unaligned"]


def close(out, exact, K, size=8e-6):
    """Is the difference within `size` for one product, some roundings of float32, and as sums of K products grow?"""
    return np.abs(out - exact).max(initial=0) <= size * max(1, K) ** 0.5


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_parity_at_odd_shapes_and_layouts(kernel, shape):
    (M, N, K), rng = shape, np.random.default_rng(0)
    for number, (of_a, of_b) in enumerate(itertools.product(LAYOUTS, LAYOUTS)):
        a, b = matrix(rng, M, K, of_a), matrix(rng, K, N, of_b)
        exact = exact_product(kernel, a, b)
        out = matrix(rng, M, N, LAYOUTS[number % len(LAYOUTS)])
        before, bias = out.copy(), rng.standard_normal(N, dtype=np.float32)
        assert product(a, b, out, kernel=kernel) is out
        assert close(out, exact, K)
        out[:] = before
        assert close(product(a, b, out, add=True, kernel=kernel), before + exact, K)
        assert close(product(a, b, out, bias=bias, kernel=kernel), exact + bias, K)


def test_nothing_else_is_written(kernel):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape, dtype=np.float32) for shape in ((37, 70), (70, 53)))
    for transpose in (False, True):
        whole = np.full((60, 60), 7, np.float32)
        out = whole.T[3:40, 4:57] if transpose else whole[3:40, 4:57]
        product(a, b, out, kernel=kernel)
        out[:] = 7
        assert (whole == 7).all()


def test_empty_and_repeated(kernel):
    rng = np.random.default_rng(0)
    out, bias = rng.standard_normal((3, 5), dtype=np.float32), np.arange(5, dtype=np.float32)
    before = out.copy()
    a, b = np.empty((3, 0), np.float32), np.empty((0, 5), np.float32)
    assert (product(a, b, out, add=True, kernel=kernel) == before).all()
    assert (product(a, b, out, bias=bias, kernel=kernel) == bias).all()
    assert (product(a, b, out, kernel=kernel) == 0).all()
    for M, N in ((0, 5), (3, 0)):
        a, b = np.ones((M, 4), np.float32), np.ones((4, N), np.float32)
        assert product(a, b, np.empty((M, N), np.float32), kernel=kernel).shape == (M, N)
    one = np.float32([[2]])
    a, b = np.broadcast_to(one, (20, 50)), np.broadcast_to(one, (50, 60))
    assert (product(a, b, np.empty((20, 60), np.float32), kernel=kernel) == 200).all()


def test_arguments_that_do_not_fit():
    a, b, out = (np.ones(shape, np.float32) for shape in ((2, 3), (3, 4), (2, 4)))
    for arrays, options in [((a, a, out), {}), ((a, b, a), {}), ((a[0], b, out), {}), ((a, b.astype(float), out), {}),
                            ((a, b, out), dict(bias=np.ones(3, np.float32))), ((a, b, out), dict(kernel="none")),
                            ((a, b, out), dict(bias=out[0], add=True))]:  # fmt: skip
        with pytest.raises(ValueError):
            product(*arrays, **options)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        product(a, b, out)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 1e-40, -0.0])
def test_a_special_value_in_every_place(kernel, value):
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(-1, 1, shape).astype(np.float32) for shape in ((9, 18), (18, 50)))
    for x, place in [(a, i) for i in range(a.size)] + [(b, i) for i in range(0, b.size, 7)]:
        old, x.flat[place] = x.flat[place], value
        out = product(a, b, np.empty((9, 50), np.float32), kernel=kernel)
        with np.errstate(invalid="ignore"):
            exact = exact_product(kernel, a, b)
        x.flat[place] = old
        assert (np.isnan(out) == np.isnan(exact)).all()
        assert (np.isinf(out) == np.isinf(exact)).all()
        finite = np.isfinite(exact)
        assert np.sign(out[~np.isnan(out) & ~finite]).tolist() == np.sign(exact[~np.isnan(out) & ~finite]).tolist()
        assert np.allclose(out[finite], exact[finite], rtol=1e-5, atol=1e-5)


def test_the_smallest_and_largest_numbers(kernel):
    """Float32 kernels keep subnormal numbers, those of bfloat16 take them as zeros; 3.4e38 rounds to infinity there."""
    rng = np.random.default_rng(0)
    b = rng.uniform(1, 2, (40, 50)).astype(np.float32)
    tiny = (rng.uniform(1, 2, (9, 40)) * 1e-40).astype(np.float32)
    out = product(tiny, b * 2**100, np.empty((9, 50), np.float32), kernel=kernel)
    exact = np.matmul(*rounded(kernel, tiny, b * 2**100))
    assert np.allclose(out, exact, rtol=1e-5, atol=0) and (exact > 0).all() == (kernel not in ("bf16", "amx"))
    largest = np.full((9, 40), 3.4e38, np.float32)
    out = product(largest, b * 2**-30, np.empty((9, 50), np.float32), kernel=kernel)
    assert np.isfinite(out).all() == (kernel not in ("bf16", "amx"))


def test_bits_do_not_depend_on_the_threads(kernel):
    rng, before = np.random.default_rng(0), POOL.threads
    try:
        for M, K, N in ((96, 700, 1000), (1000, 300, 100), (333, 77, 334), (5, 700, 3000), (1, 700, 3000)):
            a, b = rng.standard_normal((M, K), dtype=np.float32), rng.standard_normal((N, K), dtype=np.float32).T
            results = {False: set(), True: set()}
            for threads, add in itertools.product((1, 2, 3, 5), results):
                POOL.resize(threads)
                out = np.ones((M, N), np.float32)
                results[add].add(product(a, b, out, add=add, kernel=kernel).tobytes())
            assert len(results[False]) == len(results[True]) == 1
    finally:
        POOL.resize(before)


def test_the_float32_kernels_return_the_same_bits():
    if not target.available("avx512"):
        pytest.skip("there is only one here")
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((61, 900), dtype=np.float32), rng.standard_normal((900, 77), dtype=np.float32)
    one, other = (product(a, b, np.empty((61, 77), np.float32), kernel=kernel) for kernel in FLOAT32)
    assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("name", ["three_loops", "blocked", "packed"])
def test_the_plain_loops(name):
    rng = np.random.default_rng(0)
    for M, N, K in SHAPES:
        a, b = rng.standard_normal((M, K), dtype=np.float32), rng.standard_normal((K, N), dtype=np.float32)
        out = np.full((M, N), 7, np.float32)
        getattr(plain_loops, name)(a, b, out)
        assert close(out, a.astype(np.float64) @ b, K, size=4e-5)


# -- packing ----------------------------------------------------------------------------------------------------------


@numba.njit
def pack(parts, is_b, source, i_stride, k_stride, width, depth, to, panel_bytes, corner):
    packing.pack(parts, is_b, source, i_stride, k_stride, width, depth, to, panel_bytes, corner)


def tiles_of(x, is_b, parts):
    """The panels of packing.py, made by NumPy from x (width, depth): (panels, steps, parts, 16, 16) of 32 bits."""
    length = 32 if parts else 16
    width, depth = -(-x.shape[0] // 16) * 16, -(-x.shape[1] // length) * length
    whole = np.zeros((width, depth), np.float32)
    whole[: x.shape[0], : x.shape[1]] = x
    numbers = split(np, whole, parts) if parts else [whole]
    found = []
    for part in numbers:
        units = (part.view(np.uint32) >> 16).astype(np.uint16).view(np.uint32) if parts else part.view(np.uint32)
        tile = units.reshape(width // 16, 16, depth // length, 16).swapaxes(1, 2)
        found.append(tile.swapaxes(2, 3) if is_b else tile)
    return np.stack(found, 2)


@pytest.fixture
def as_with_tiles(monkeypatch):
    """Compile what processors with AMX have, its tile instructions replaced by others that do the same."""
    monkeypatch.setattr(amx, "Tiles", StandInTiles)
    monkeypatch.setattr(amx, "has", lambda *names: True)
    monkeypatch.setattr(tiles, "parts_needed", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(microkernel, "has", lambda *names: False)  # saves time: the other kernels


def check_packed_tiles(pack, parts):
    rng = np.random.default_rng(0)
    corner = np.empty(packing.CORNER_BYTES, np.uint8)
    special = [1e-40, 2.0**-120, 1e37, 1 + 2**-8, 1 + 3 * 2**-8] + ([3.4e38, -np.inf, np.nan] if parts < 2 else [])
    for width, depth in ((16, 32), (64, 96), (17, 33), (1, 1), (50, 31), (31, 64), (257, 69)):
        for is_b, layout in itertools.product((False, True), LAYOUTS):
            x = matrix(rng, width, depth, layout)
            x.flat[rng.integers(0, x.size, len(special))] = special
            want = tiles_of(x, is_b, parts)
            memory = np.full(want.nbytes + 64, 7, np.uint8)
            skipped = -memory.ctypes.data % 64
            pack(parts, is_b, x.ctypes.data, *x.strides, width, depth, memory.ctypes.data + skipped, want[0].nbytes,
                 corner.ctypes.data)  # fmt: skip
            got = memory[skipped : skipped + want.nbytes].view(np.uint32).reshape(want.shape)
            assert (got == want).all(), (width, depth, is_b, layout)


def test_packed_tiles_of_float32():
    check_packed_tiles(pack, 0)


# -- other processors -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_tile_kernels_on_a_stand_in(as_with_tiles):
    """The AMX kernels with all that is around them."""
    part = numba.njit(blocks.multiply_part.py_func)               # compiled anew, not kept
    memory = Scratch()                                            # must live as long as the address is used
    scratch = memory.address(1)
    rng = np.random.default_rng(0)
    for (M, N, K), parts in itertools.product(
        [(32, 32, 32), (1, 1, 1), (33, 70, 50), (65, 31, 800), (10, 1030, 40), (1000, 35, 33)], (1, 2, 3)
    ):
        a, b = matrix(rng, M, K, "sliced"), matrix(rng, K, N, "transposed")
        out, bias = np.empty((M, N), np.float32), rng.standard_normal(N, dtype=np.float32)
        exact = np.matmul(*rounded("amx" if parts == 1 else "amx x6", a, b)) + bias
        part(0, M, 0, N, K, blocks.AMX, parts, blocks.depth_at_a_time(K, parts), blocks.addresses(a, 1),
             blocks.addresses(b, 0), bias.ctypes.data, 0, out.ctypes.data, out.strides[0], scratch)  # fmt: skip
        assert close(out, exact, K, size=4e-5 if parts == 2 else 8e-6)


@pytest.mark.parametrize("converts", [False, True], ids=["in integers", "by instructions"])
def test_packed_parts(as_with_tiles, monkeypatch, converts):
    if converts and not target.available("bf16"):
        pytest.skip("this processor has no instruction that converts to bfloat16")
    monkeypatch.setattr(tiles, "has", lambda *names: converts)
    anew = numba.njit(pack.py_func)
    for parts in (1, 2, 3):
        check_packed_tiles(anew, parts)


@pytest.mark.parametrize("has, processor, highest, high, medium", [
    ("amx avx512 bf16", "sapphirerapids", "amx x6", "amx x3", "amx"),
    ("avx512 bf16", "znver4", "avx512", "avx512", "bf16"),
    ("avx512 bf16", "cooperlake", "avx512", "avx512", "avx512"),
    ("", "znver2", "vector", "vector", "vector"),
])  # fmt: skip
def test_the_choice_of_a_kernel(monkeypatch, has, processor, highest, high, medium):
    monkeypatch.setattr(target, "available", lambda kernel: kernel.split()[0] in has.split())
    monkeypatch.setattr(target, "_cpu_name", lambda: processor)
    assert [target.fastest(name) for name in ("highest", "high", "medium")] == [highest, high, medium]


def test_tiles_need_the_permission_of_the_system(monkeypatch):
    """The system is asked in earnest: where the processor has no tiles it refuses."""
    if target.has("amx-tile") or sys.platform != "linux":
        pytest.skip("this is about processors without tiles, under Linux")
    monkeypatch.setattr(target, "has", lambda *names: True)
    target.tiles_permitted.cache_clear()
    try:
        assert not target.tiles_permitted() and not target.available("amx x6")
    finally:
        target.tiles_permitted.cache_clear()


def test_kernels_and_references_split_the_same_matrices():
    rng, answers = np.random.default_rng(1), set()
    for _ in range(300):
        a, b = (10.0 ** rng.integers(-38, 38, 2)).astype(np.float32)
        a, b = a * matrix(rng, 5, 3, "plain"), b * matrix(rng, 3, 4, "plain")
        a[rng.integers(5)] *= rng.integers(2)
        b[:, rng.integers(4)] *= rng.integers(2)
        answers.add(can_be_split(a, b))
        assert can_be_split(a, b) == bfloat16.can_be_split(np, a, b)
    assert answers == {True, False}


def test_what_can_be_split():
    rng = np.random.default_rng(0)
    a, b = matrix(rng, 70, 40, "plain"), matrix(rng, 40, 300, "transposed")
    assert can_be_split(a, b) and can_be_split(b.T, a.T) and can_be_split(a[::-2, ::3], b[:14])
    for x, value in itertools.product((a, b), (np.nan, -np.inf, 3.39e38)):
        changed = x.copy(order="K")
        changed[7, 9] = value
        assert not can_be_split(*((changed, b) if x is a else (a, changed)))
    for value in (0, 1e-45, -1e-30):                              # beside larger numbers: lost in any float32 sum
        a[7, 9] = value
        assert can_be_split(a, b)
    a[7] = 0
    assert can_be_split(a, b)
    a[7, 3] = 1e-36
    assert not can_be_split(a, b)
    a[7, 3] = b[:, 5] = 1e-16
    assert not can_be_split(a, b)
    for layout in LAYOUTS:
        x = matrix(rng, 70, 300, layout)
        assert (largest_of_lines(x) == np.abs(x).max(1)).all()


COMPILE = """
import re, sys
from numba import types
from ops.kernels.cpu.gemm import blocks
i, three = types.int64, types.UniTuple(types.int64, 3)
blocks.multiply_part.compile((i,) * 8 + (three, three) + (i,) * 5)
code = next(iter(blocks.multiply_part.inspect_asm().values()))
for word in ("zmm", "vdpbf16ps", "tdpbf16ps", "ldtilecfg", "tilerelease"):
    print(word, len(re.findall(r"\\b%s" % word, code)))
"""
MULTIPLY = """
import numpy as np
from ops.kernels.cpu.gemm import target
from ops.kernels.cpu.gemm.product import product
rng = np.random.default_rng(0)
a, b = rng.standard_normal((40, 70), dtype=np.float32), rng.standard_normal((70, 90), dtype=np.float32)
out = product(a, b, np.empty((40, 90), np.float32))
print(target.fastest("highest"), target.fastest("medium"), np.abs(out - a.astype(float) @ b).max() < 1e-4)
"""


def run(script, tmp_path, **environment):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), **environment}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


def test_a_processor_without_the_features_never_sees_their_code(tmp_path):
    if not target.has("avx2"):
        pytest.skip("not an x86 processor with AVX2")
    newer = "avx512", "avx10", "amx"
    features = ",".join("+" + name for name in sorted(target.features()) if not name.startswith(newer))
    counts = run(COMPILE + MULTIPLY, tmp_path, NUMBA_CPU_NAME="x86-64-v3", NUMBA_CPU_FEATURES=features)
    assert counts == "zmm 0 vdpbf16ps 0 tdpbf16ps 0 ldtilecfg 0 tilerelease 0 vector vector True".split()


@pytest.mark.slow
def test_the_tile_kernel_compiles_for_a_processor_with_tiles(tmp_path):
    if not target.has("avx2"):
        pytest.skip("not an x86 processor")
    names = sorted(target.features() | {"avx512f", "avx512bw", "avx512bf16", "amx-tile", "amx-bf16"})
    features = ",".join("+" + name for name in names)
    counts = run(COMPILE, tmp_path, NUMBA_CPU_NAME="sapphirerapids", NUMBA_CPU_FEATURES=features)
    counts = dict(zip(counts[::2], map(int, counts[1::2])))
    assert counts["tdpbf16ps"] >= 4 and counts["ldtilecfg"] == counts["tilerelease"] == 1
