"""Attention in float32 whose products are TF32 (--matmul-precision high or medium), run on the CPU: the values, what
rounds, what is chosen, and planted faults."""

import re

import cuda_checks
import numpy as np
import pytest
import strict_cupy
from cuda_host import KernelFault, needs_compiler, running
from test_cuda_attention import DIFFERS, DROPOUT, OUTSIDE, PLAIN, SHARED, TENSOR_CORES, TF32, check, projections, run

from ops.kernels.cuda import attention_tiles
from ops.kernels.cuda.attention import AttentionCUDA
from ops.kernels.cuda.launch import source

pytestmark = needs_compiler
SHAPES = [(17, 17, 33), (128, 129, 16), (20, 70, 64), (35, 35, 80), (5, 40, 128)]  # 128, 129: the last query's last key


@pytest.fixture
def cupy(monkeypatch):
    return strict_cupy.install(monkeypatch)


@pytest.mark.parametrize("options", [{}, DROPOUT], ids=["", "dropout"])
@pytest.mark.parametrize("Tq, Tk, hs", SHAPES)
def test_it_equals_the_reference(Tq, Tk, hs, options, cupy):
    batch = (2, 3) if Tk < 20 else (1, 1)
    check(cupy, projections(Tq, Tk, hs, "tf32", batch), "tf32", options, kernels=TENSOR_CORES)


def test_factors_have_11_significant_bits(cupy):
    """Of v: out of the first query is v itself, rounded. float32's kernels return its bits."""
    q, k, v = projections(5, 5, 8, "float32")
    for dtype in ("float32", "tf32"):
        with cuda_checks.in_precision(dtype), running():
            out = AttentionCUDA(cupy, [False] * 3).forward(*map(strict_cupy.ndarray, (q, k, v))).get()
        bits = v[0, 0, 0].view(np.uint32)
        rounded = ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
        assert np.array_equal(out[0, 0, 0], v[0, 0, 0] if dtype == "float32" else rounded)


def test_rounding_is_to_nearest(cupy):
    """v through a weight of 1: ties away from 0, also of the largest numbers and of those that are not normal."""
    values = np.float32([1 + 2.0**-11, -1 - 2.0**-11, 1 + 2.0**-11 - 2.0**-23, 1.5, 2.0**127, 3.4e38, 2.0**-130, 0])
    v = np.tile(values, (1, 1, 5, 1))
    with cuda_checks.in_precision("tf32"), running():
        zeros = strict_cupy.ndarray(np.zeros_like(v))
        out = AttentionCUDA(cupy, [False] * 3).forward(zeros, zeros, strict_cupy.ndarray(v)).get()[0, 0, 0]
    expected = np.float32([1 + 2.0**-10, -1 - 2.0**-10, 1, 1.5, 2.0**127, 3.4e38, 2.0**-130, 0])
    assert np.allclose(out, expected, rtol=2.0**-11, atol=0) and np.array_equal(out[:5], expected[:5])


@pytest.mark.parametrize("which", [0, 1])
def test_q_and_k_are_rounded_to_nearest(which, cupy):
    """All scores of a query are 8 x / sqrt(8), which logsum shows; x is nearly 1 + 2^-10, where 1 is all above it."""
    arrays = [np.ones((1, 1, 20, 8), np.float32) for _ in range(3)]
    arrays[which] *= np.float32(1 + 2.0**-10 - 2.0**-23)
    with cuda_checks.in_precision("tf32"), running():
        node = AttentionCUDA(cupy, [True] * 3)
        node.forward(*map(strict_cupy.ndarray, arrays))
    expected = 8 * (1 + 2.0**-10) * np.log2(np.e) / np.sqrt(8) + np.log2(np.arange(1, 21))
    assert np.abs(node.saved[4].get() - expected).max() < 1e-5


def test_weights_are_rounded_to_nearest(cupy):
    """Each out is a mean of ones: what is cut off below 11 bits would be missing in all of them, a third of 2^-10."""
    q, k, v = projections(100, 100, 16, "float32")
    with cuda_checks.in_precision("tf32"), running(check=False):
        out = AttentionCUDA(cupy, [False] * 3).forward(*map(strict_cupy.ndarray, (q, k, np.ones_like(v)))).get()
    assert abs(out[0, 0, 50:].mean() - 1) < 2.0**-14


def test_a_gpu_without_it_and_large_heads_have_the_plain_kernels(cupy, monkeypatch):
    check(cupy, projections(6, 6, 140, "tf32"), "tf32", {}, orders=(False,), kernels=PLAIN)
    attention_tiles.capability.cache_clear()
    monkeypatch.setattr(type(cupy.cuda.Device()), "compute_capability", "75")
    check(cupy, projections(20, 20, 16, "tf32"), "tf32", {}, orders=(False,), kernels=PLAIN)
    attention_tiles.capability.cache_clear()


def test_rows_that_cannot_be_read_by_16_bytes(cupy):
    q, k, v = projections(20, 20, 16, "float32")
    memory = np.empty(q.size + 1, q.dtype)
    shifted = memory[1:].reshape(q.shape)
    shifted[...] = q
    assert shifted.ctypes.data % 16
    check(cupy, (shifted, k, v), "tf32", {}, orders=(False,), kernels=TENSOR_CORES)


@pytest.mark.parametrize("tiles", attention_tiles.TF32.values(), ids=lambda tiles: tiles.file)
def test_the_shared_memory_is_that_of_the_kernels_constants(tiles):
    constants = dict(re.findall(r"^const (?:int|bool) (\w+) = (\w+);", source(tiles.file, "float32"), re.MULTILINE))
    HS, M, KEYS, QUERIES = (int(constants[name]) for name in ("HS", "M", "KEYS", "QUERIES"))
    assert tiles == attention_tiles._tiles_of(tiles.file, HS, 64 * M, KEYS, QUERIES, 4)
    assert constants["DROPS"] == str("dropout" in tiles.file).lower()
    assert attention_tiles.TF32[HS, "dropout" in tiles.file] is tiles
    assert max(block.shared for block in tiles.blocks.values()) <= 99 << 10   # what compute capability 8.6 has


FAULTS = {  # what it is: (file, what is replaced in it, by what, what the checks say)
    "loaded unswizzled": (
        "attention_tf32", "place<HS>(row + i * STEP, column / 4)", "(row + i * STEP) * HS + column", DIFFERS),
    "rows of the usual order": ("attention_tf32", "8 * k + 2 * t + i, 2", "8 * k + t + 4 * i, 2", DIFFERS),
    "a product too few": ("attention_tf32", "k < HS / DEPTH; k++", "k < HS / DEPTH - 1; k++", DIFFERS),
    "rows behind the last are read": (
        "attention_tf32", "row + i * STEP < valid", "true", f"{DIFFERS}|{SHARED}|{OUTSIDE}"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, cupy):
    file, old, new, message = FAULTS[fault]
    with cuda_checks.planted(file, old, new), pytest.raises((AssertionError, KernelFault), match=message):
        check(cupy, projections(50, 70, 64, "tf32"), "tf32", {}, (False,))


def test_errors_are_those_of_tf32(cupy):
    """Larger than float32's by far, and those that the tolerance is made for."""
    arrays = projections(40, 40, 64, "float32")
    dout = np.random.default_rng(1).standard_normal(arrays[0].shape).astype(np.float32)
    exact, _ = run(cupy, arrays, dout, "float32", {})
    got, _ = run(cupy, arrays, dout, "tf32", {})
    for one, other in zip(exact, got):
        one, other = one.get(), other.get()
        assert 2.0**-15 < np.abs(one - other).max() / np.abs(one).max() < TF32
