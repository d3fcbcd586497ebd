"""Attention by products of warpgroups, run on the CPU: values, the choice of this path, and planted faults."""

import ctypes
import re
import sys
from types import SimpleNamespace

import cuda_checks
import numpy as np
import nvrtc
import pytest
import strict_cupy
from cuda_host import KernelFault, RawModule, needs_compiler, running
from marks import slow_but
from test_cuda_attention import ANY, DIFFERS, SHARED, array_dtype, check, projections, run
from test_cuda_offsets import FAR, apart, normal

from ops.kernels.cuda import attention_hopper, attention_tiles
from ops.kernels.cuda.attention import AttentionCUDA
from ops.kernels.cuda.attention_hopper import HOPPER, path
from ops.kernels.cuda.launch import options, source
from tinygrad2.commands import doctor_kernels
from tinygrad2.precision import computing

pytestmark = needs_compiler
pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: bfloat16 on a GPU needs it")

WARPGROUPS = ["attention_hopper_forward", "attention_delta", "attention_hopper_dkdv", "attention_hopper_dq"]
WARPS = ["attention_forward", "attention_delta", "attention_dkdv", "attention_dq"]


@pytest.fixture
def cupy(monkeypatch):
    """The stand-in as an H100, which has compared nothing yet."""
    cupy = strict_cupy.install(monkeypatch)
    attention_tiles.capability.cache_clear()
    monkeypatch.setattr(type(cupy.cuda.Device()), "compute_capability", "90")
    monkeypatch.setattr(attention_hopper, "_right", {})
    yield cupy
    attention_tiles.capability.cache_clear()


# -- values ------------------------------------------------------------------------------------------------------------

SHAPES = [  # Tq, Tk, hs, batches and heads
    (17, 17, 64, (2, 3)),
    (129, 129, 64, (1, 1)),
    (65, 65, 40, (1, 2)),
    (128, 128, 16, (1, 2)),  # whole blocks
    (128, 129, 16, (1, 1)),  # one query, the last of a block, sees one key of the last tile
    (200, 200, 8, (1, 1)),
    (33, 97, 64, (1, 1)),
    (70, 260, 24, (1, 1)),
    (66, 66, 33, (1, 1)),
]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("Tq, Tk, hs, batch", SHAPES)
def test_attention_by_warpgroups(Tq, Tk, hs, batch, dtype, cupy):
    with path("warpgroups"):
        check(cupy, projections(Tq, Tk, hs, dtype, batch), dtype, {}, kernels=WARPGROUPS)


def test_both_paths_agree_and_their_parts_are_exchangeable(cupy):
    """Forward of one and backward of the other: they mean the same by logsum and delta."""
    arrays = projections(140, 140, 64)
    dout = np.random.default_rng(1).standard_normal(arrays[0].shape).astype(array_dtype("bfloat16"))
    found = {}
    for forward in ("warps", "warpgroups"):
        for backward in ("warps", "warpgroups"):
            with cuda_checks.in_precision("bfloat16"), running(check=False):
                node = AttentionCUDA(cupy, [True] * 3)
                with path(forward):
                    out = node.forward(*map(strict_cupy.ndarray, arrays))
                with path(backward):
                    gradients = node.backward(strict_cupy.ndarray(dout))
            found[forward, backward] = list(map(cuda_checks.host, [out, *gradients]))
    for results in found.values():
        for one, other in zip(found["warps", "warps"], results):
            assert np.abs(one - other).max() <= cuda_checks.TOLERANCE["bfloat16"] * np.abs(one).max()


def test_addresses_that_are_no_multiple_of_16_bytes(cupy):
    """One element further: rows are read element by element, and products still see them."""
    q, k, v = projections(70, 70, 16)
    memory = np.empty(k.size + 1, k.dtype)
    shifted = memory[1:].reshape(k.shape)
    shifted[...] = k
    assert shifted.ctypes.data % 16
    with path("warpgroups"):
        check(cupy, (q, shifted, v), "bfloat16", {}, orders=(False,), kernels=WARPGROUPS)


def test_large_scores_do_not_overflow(cupy):
    """As in test_cuda_attention.py: scores of some hundreds, weights 0 or 1."""
    with path("warpgroups"):
        check(cupy, projections(80, 80, 64, scale=10), "bfloat16", {}, orders=(False,), size=80 * 30 / 8)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is reserved when asked for")
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_heads_that_are_far_apart(axis, cupy):
    """Batches, heads or rows, by more than 2^31 elements in all: the same bits as next to each other."""
    arrays = [normal(2, 2, 20, 16, seed=seed).astype(array_dtype("float16")) for seed in range(4)]
    distance = FAR // 8 if axis == 2 else FAR
    found = []
    for q, k, v, dout in (arrays, [apart(array, axis, distance) for array in arrays]):
        with cuda_checks.in_precision("float16"), running(check=False), path("warpgroups"):
            node = AttentionCUDA(cupy, [True] * 3)
            out = node.forward(*map(strict_cupy.ndarray, (q, k, v)))
            found.append([x.get() for x in (out, *node.backward(strict_cupy.ndarray(dout)))])
    assert all(np.array_equal(a, b) for a, b in zip(*found)) and all(map(np.any, found[0]))


# -- which path ----------------------------------------------------------------------------------------------------


def chosen(cupy, dtype, hs, p):
    return attention_hopper.tiles_for(AttentionCUDA, cupy, dtype, hs, p)


def launched(cupy):
    arrays = projections(20, 20, 16)
    return run(cupy, arrays, np.ones(arrays[0].shape, arrays[0].dtype), "bfloat16", {})[1]


def compared(cupy, dtype="bfloat16"):
    """What a first use leads to, and the kernels that it has started."""
    with running(check=False) as launches:
        found = chosen(cupy, array_dtype(dtype), 64, 0.0)
    return found, launches


def test_a_first_use_compares_both_paths(cupy):
    found, launches = compared(cupy)
    assert found is HOPPER and launches == WARPS + WARPGROUPS
    found, launches = compared(cupy)
    assert found is HOPPER and launches == []
    assert launched(cupy) == WARPGROUPS


@pytest.mark.slow
def test_the_doctor_runs_this_path(cupy, monkeypatch):
    monkeypatch.setattr(doctor_kernels, "TOLERANCE", {"float16": 2.0**-9})
    with running(check=False) as launches:
        assert doctor_kernels.check("attention by warpgroups") == [] and set(launches) == set(WARPGROUPS)
        assert doctor_kernels.check("attention") == [] and set(WARPS) <= set(launches)


def test_other_gpus_types_and_dropout_keep_their_kernels(cupy, monkeypatch):
    usual = attention_tiles.TENSOR_CORES
    with path("warpgroups"):
        half, single = array_dtype("float16"), np.dtype(np.float32)
        assert chosen(cupy, half, 64, 0.0) is HOPPER
        assert chosen(cupy, half, 64, 0.1) is usual[64, True]
        assert chosen(cupy, half, 72, 0.0) is usual[128, False]
        assert chosen(cupy, single, 64, 0.0) is attention_tiles.PLAIN[64]
        for other in ("80", "89", "100", "120"):
            attention_tiles.capability.cache_clear()
            monkeypatch.setattr(type(cupy.cuda.Device()), "compute_capability", other)
            assert chosen(cupy, half, 64, 0.0) is usual[64, False]


def test_a_flag_leaves_them_out(cupy):
    """They have not been on a GPU: should one of them break it, no comparison helps."""
    config = SimpleNamespace(kernels="auto", dtype="bfloat16", matmul_precision="highest", gpu_attention="warps")
    with computing(config):
        assert chosen(cupy, array_dtype("bfloat16"), 64, 0.0) is attention_tiles.TENSOR_CORES[64, False]
        assert launched(cupy) == WARPS


@pytest.mark.parametrize("fault, reason", [
    (("attention_hopper_forward", "factor[half] = 1 / sum", "factor[half] = 1.1f / sum"), "their out differs by 1"),
    (("attention_hopper_backward", "mean[half] = query < Tq ? delta", "mean[half] = query < Tq ? -delta"),
     "their dq differs by "),
])  # fmt: skip
def test_what_computes_something_else_is_not_used(fault, reason, cupy):
    with cuda_checks.planted(*fault), pytest.warns(RuntimeWarning) as warned:
        found, _ = compared(cupy)
    assert found is attention_tiles.TENSOR_CORES[64, False]
    (line,) = [str(warning.message) for warning in warned]
    assert line.startswith(f"attention in bfloat16 on GPU 0 runs without products of warpgroups: {reason}")
    assert launched(cupy) == WARPS                                # said once; without another comparison


def test_what_does_not_compile_is_not_used(cupy, monkeypatch):
    class Refusing(RawModule):
        def __init__(self, code, options=()):
            if "-arch=sm_90a" in options:
                raise RuntimeError("nvrtc: error: invalid value for --gpu-architecture (-arch)\nand more")
            super().__init__(code, options)

    monkeypatch.setattr(cupy, "RawModule", Refusing)
    with pytest.warns(RuntimeWarning, match=r"warpgroups: nvrtc: error: invalid value for --gpu-arch\S+ \(-arch\)$"):
        assert compared(cupy)[0] is attention_tiles.TENSOR_CORES[64, False]


def test_a_capture_compares_nothing_and_decides_nothing(cupy):
    stream = cupy.cuda.Stream(non_blocking=True)
    stream.begin_capture()
    try:
        assert chosen(cupy, array_dtype("float16"), 64, 0.0) is not HOPPER
    finally:
        stream.end_capture()
    assert compared(cupy, "float16")[0] is HOPPER


# -- sizes that are written down twice ---------------------------------------------------------------------------------


@nvrtc.needs_nvrtc
def test_the_table_in_the_docstring_is_that_of_the_compiler():
    found = re.findall(r"^    (forward|dk, dv|dq) +(\d+) +(\d+) +([\d,]+)$", attention_hopper.__doc__, re.MULTILINE)
    assert len(found) == 3 and options("attention_hopper")[-1] == "-arch=sm_90a"
    uses = nvrtc.cubins("attention_hopper", "bfloat16", 90)
    major, minor = ctypes.c_int(), ctypes.c_int()
    assert nvrtc.load_library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)) == 0
    for name, threads, registers, shared in found:
        name = name.replace(", ", "")
        block = HOPPER.blocks[name]
        assert (block.threads, block.shared) == (int(threads), int(shared.replace(",", "")))
        slack = 0 if (major.value, minor.value) == (13, 0) else 24
        assert abs(uses[f"attention_hopper_{name}"].registers - int(registers)) <= slack


@nvrtc.needs_nvrtc
def test_the_architecture_that_cupy_adds_does_not_count():
    """CuPy names that of the GPU, sm_90, behind the options of a module; alone it has no products of warpgroups."""
    code = 'extern "C" __global__ void fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }'
    assert nvrtc.compiled(code, "90a", more=["-arch=sm_90"])[0]
    ok, log, _ = nvrtc.compiled(code, "90")
    assert not ok and "not supported on .target 'sm_90'" in log


def test_groups_of_a_block_are_those_of_the_kernels():
    text = source("attention_hopper", "float16")
    for constant, name in (("FORWARD", "forward"), ("DKDV", "dkdv"), ("DQ", "dq")):
        groups = int(re.search(rf"\b{constant}_GROUPS = (\d+)", text)[1])
        block = HOPPER.blocks[name]
        assert (block.threads, block.rows) == (128 * groups, 64 * groups)


# -- planted faults ----------------------------------------------------------------------------------------------------

FENCE, UNORDERED = "    proxy_fence();\n    __syncthreads();", "    proxy_fence();\n"
FORWARD, BACKWARD, TILES = "attention_hopper_forward", "attention_hopper_backward", "attention_hopper_tiles"
WAITS = "differs|wgmma: "
NO_FENCE = "with no fence.proxy.async between write and barrier"
ANY = f"{ANY}|{NO_FENCE}|that nothing waits for"
SCORES, SUMS = "wgmma<T, 0>(x, a + 2 * k, b + 2 * k", "wgmma<T, 1>(x, w[k], b + 128 * k"
WAIT = "hold(s);\n        hold(o)"

# What it is: (file, what is replaced in it, by what, what the checks say).
FAULTS = {
    "tiles: no proxy fence": (TILES, FENCE, "    __syncthreads();", NO_FENCE),
    "tiles: the proxy fence behind the barrier": (TILES, FENCE, "    __syncthreads();\n    proxy_fence();", NO_FENCE),
    "tiles: no barrier": (TILES, FENCE, UNORDERED, f"{SHARED}|{NO_FENCE}"),
    "tiles: nothing waits for the copies": (TILES, "    cp_async_wait<0>();\n    proxy_fence", "    proxy_fence", ANY),
    "tiles: no multiple of 1024 bytes": (TILES, "% 1024 / sizeof(T)", "% 1024 / sizeof(T) * 0", DIFFERS),
    "tiles: written unswizzled": (TILES, "place<64>(row, column / 8)", "row * 64 + column", DIFFERS),
    "tiles: 16 columns are 16 bytes": (TILES, SCORES, SCORES.replace("2 * k", "k"), DIFFERS),
    "tiles: 16 rows are 1024 bytes": (TILES, SUMS, SUMS.replace("128 * k", "64 * k"), DIFFERS),
    "tiles: B is not transposed": (TILES, SUMS, SUMS.replace("T, 1", "T, 0"), ANY),
    "tiles: a sum begins again": (TILES, "b + 128 * k, true", "b + 128 * k, k > 0", DIFFERS),
    "tiles: no fence of registers": (TILES, "hold(w);\n    wgmma_fence();", "hold(w);", "no wgmma.fence"),
    "tiles: halves of a pair exchanged": (TILES, "[i % 2 * 2], x", "[i % 2 * 2 + 1], x", DIFFERS),
    "matrix: 8 rows are 512 bytes": ("warpgroup", "64ull << 32", "32ull << 32", ANY),
    "matrix: swizzled by 64 bytes": ("warpgroup", "1ull << 62", "2ull << 62", ANY),
    "forward: one key too many is seen": (FORWARD, "i / 2 * 8 + ahead)", "i / 2 * 8 + ahead + 1)", DIFFERS),
    "forward: the last key is not seen": (FORWARD, "t + i % 2 > mine", "t + i % 2 >= mine", DIFFERS),
    "forward: two tiles in place of three": (FORWARD, "turn < 2 ? turn + 1 : 0", "turn ^ 1", ANY),
    "forward: v of the tile behind": (FORWARD, "v_tiles + turn * TILE", "v_tiles + after(turn) * TILE", ANY),
    "forward: scores are read too early": (FORWARD, f"wgmma_wait<0>();\n        {WAIT}", WAIT, WAITS),
    "forward: out is read too early": (FORWARD, "    wgmma_wait<0>();\n    hold(o)", "    hold(o)", WAITS),
    "forward: out is written while it is summed": (
        FORWARD, f"wgmma_wait<0>();\n        {WAIT}", f"o[0][0] = 1;\n        wgmma_wait<0>();\n        {WAIT}",
        "an accumulator was written before the wait"),
    "forward: the old sum is not scaled down": (FORWARD, "* factor + sum", "+ sum", DIFFERS),
    "forward: a warpgroup leaves out its last tile": (FORWARD, "group + 63 + ahead", "group + ahead - 1", DIFFERS),
    "forward: warps go apart": (FORWARD, "key > group + 63 + ahead", "key > mine + 15 + ahead", "waits for its warpg"),
    "dkdv: one key too many": (BACKWARD, "t + i % 2 + ahead)", "t + i % 2 + ahead + 1)", DIFFERS),
    "dkdv: it begins one tile too late": (BACKWARD, "max(0, first - ahead)", "max(0, first - ahead + 128)", DIFFERS),
    "dkdv: delta of the other tile": (
        BACKWARD, "deltas + turn * QUERIES + 2", "deltas + (turn ^ 1) * QUERIES + 2", ANY),
    "dkdv: tiles are exchanged": (
        BACKWARD, "begin_sums(dv_sum, w_packed, dout", "begin_sums(dv_sum, w_packed, q", DIFFERS),
    "dkdv: ds is read too early": (
        BACKWARD, "        begin_sums(dv_sum, w_packed, dout_tile);\n        wgmma_wait<1>();",
        "        begin_sums(dv_sum, w_packed, dout_tile);\n        wgmma_wait<2>();", WAITS),
    "dkdv: weights are overwritten while they are summed": (
        BACKWARD, "pack_weights(ds_packed, ds);\n        begin_sums(dk_sum",
        "pack_weights(w_packed, ds);\n        pack_weights(ds_packed, ds);\n        begin_sums(dk_sum", DIFFERS),
    "dq: one key too many": (BACKWARD, "i / 2 * 8 + ahead)", "i / 2 * 8 + ahead + 1)", DIFFERS),
    "dq: both halves of the memory are one": (BACKWARD, "key += KEYS, turn ^= 1", "key += KEYS, turn ^= 0", ANY),
    "dq: rows of the other warpgroup": (BACKWARD, "q_tile + own * 64", "q_tile + (own ^ 64) * 64", DIFFERS),
}  # fmt: skip


QUICK = ["tiles: no proxy fence"]
ALIKE = [  # what they plant, others do as well
    "tiles: no multiple of 1024 bytes", "tiles: written unswizzled", "tiles: 16 columns are 16 bytes",
    "tiles: B is not transposed", "tiles: a sum begins again", "tiles: halves of a pair exchanged",
    "matrix: 8 rows are 512 bytes", "matrix: swizzled by 64 bytes", "forward: the last key is not seen",
    "forward: v of the tile behind", "forward: out is read too early", "forward: out is written while it is summed",
    "forward: the old sum is not scaled down", "forward: a warpgroup leaves out its last tile",
    "dkdv: it begins one tile too late", "dkdv: delta of the other tile", "dkdv: tiles are exchanged",
    "dq: rows of the other warpgroup",
]  # fmt: skip


@pytest.mark.parametrize("fault", slow_but(QUICK, FAULTS, ALIKE))
def test_a_planted_fault_is_found(fault, cupy):
    """Whatever order threads run in; a wrong value is the same in both."""
    file, old, new, message = FAULTS[fault]
    with cuda_checks.planted(file, old, new), path("warpgroups"):
        for reverse in (False,) if message == DIFFERS else (False, True):
            with pytest.raises((AssertionError, KernelFault), match=message):
                check(cupy, projections(100, 230, 56), "bfloat16", {}, (reverse,))
