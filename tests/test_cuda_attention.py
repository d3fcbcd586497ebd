"""Attention on the GPU, run on the CPU: its values at odd shapes, its mask, its memory, and planted faults."""

import ctypes
import re

import cuda_checks
import numpy as np
import nvrtc
import pytest
import strict_cupy
from cuda_host import KernelFault, needs_compiler, running
from kernel_checks import error

from ops.attention import Attention
from ops.dropout import keep_mask
from ops.kernels.cuda import attention, attention_tiles
from ops.kernels.cuda.attention import AttentionCUDA
from ops.kernels.cuda.attention_arguments import dropout_hash
from ops.kernels.cuda.launch import source
from ops.kernels.cuda.split_heads import SplitHeadsCUDA
from tinygrad2.halves import half_dtype

pytestmark = needs_compiler
pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: bfloat16 on a GPU needs it")

HALVES = ("bfloat16", "float16")
TF32 = 2.0**-9  # an error of a result: factors have 11 significant bits
DROPOUT = dict(p=0.2, key=7, first=5)
TENSOR_CORES = ["attention_forward", "attention_delta", "attention_dkdv", "attention_dq"]
PLAIN = ["attention_plain_forward", "attention_delta", "attention_plain_dkdv", "attention_plain_dq"]


@pytest.fixture
def cupy(monkeypatch):
    return strict_cupy.install(monkeypatch)


@pytest.fixture
def older_gpu(cupy, monkeypatch):
    """A T4: tensor cores for float16 only."""
    attention_tiles.capability.cache_clear()
    monkeypatch.setattr(type(cupy.cuda.Device()), "compute_capability", "75")
    yield
    attention_tiles.capability.cache_clear()


def projections(Tq, Tk, hs, dtype="bfloat16", batch=(1, 1), scale=1.0, seed=0):
    """q, k and v as split_heads cuts them out of packed projections: (B, nh, T, hs), rows 3 nh hs apart."""
    B, nh = batch
    rng = np.random.default_rng(seed)
    values = (scale * rng.standard_normal((B, Tk, 3, nh, hs))).astype(array_dtype(dtype))
    q, k, v = values.transpose(2, 0, 3, 1, 4)
    return q[:, :, Tk - Tq :], k, v


def array_dtype(name):
    return np.dtype(np.float32) if name in ("float32", "tf32") else half_dtype(name)


def reference(arrays, dout, options):
    node = Attention(np, [True] * 3)
    out = node.forward(*cuda_checks.widened(arrays), **options)
    return [out, *node.backward(dout.astype(np.float64))]


def run(cupy, arrays, dout, dtype, options, reverse=False):
    """([out, dq, dk, dv], names of the kernels)."""
    with cuda_checks.in_precision(dtype), running(reverse=reverse) as launches, strict_cupy.no_sync():
        node = AttentionCUDA(cupy, [True] * 3)
        out = node.forward(*map(strict_cupy.ndarray, arrays), **options)
        gradients = node.backward(strict_cupy.ndarray(dout.astype(out.dtype)))
    return [out, *gradients], launches


def check(cupy, arrays, dtype, options, orders=(False, True), size=0.0, least=0.0, kernels=None):
    """The kernels' results are the reference's in float64, and have the same bits in both orders of the threads."""
    dout = np.random.default_rng(1).standard_normal(arrays[0].shape).astype(array_dtype(dtype))
    expected, first = reference(arrays, dout, options), None
    tolerance = max((cuda_checks.TOLERANCE | {"tf32": TF32})[dtype], least)
    for reverse in orders:
        got, launches = run(cupy, arrays, dout, dtype, options, reverse)
        got = list(map(cuda_checks.host, got))
        for name, values, exact in zip(("out", "dq", "dk", "dv"), got, expected):
            assert values.shape == exact.shape
            off = error(values, exact, size if name in ("dq", "dk") else 0.0)
            assert off <= tolerance, f"{name} differs from the reference by {off:.1e}"
        assert kernels is None or launches == kernels
        first = first or got
        assert all(np.array_equal(a, b) for a, b in zip(first, got)), "the order of the threads changes the bits"


# -- values ------------------------------------------------------------------------------------------------------------

SHAPES = [(15, 8), (17, 33), (63, 64), (64, 20), (65, 80), (130, 16), (20, 128)]
FEWER_QUERIES = [(20, 70, 64), (65, 130, 16), (5, 200, 72)]


@pytest.mark.parametrize("options", [{}, DROPOUT], ids=["", "dropout"])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("T, hs", SHAPES)
def test_attention_on_tensor_cores(T, hs, dtype, options, cupy):
    batch = (2, 3) if T < 20 else (1, 1)
    check(cupy, projections(T, T, hs, dtype, batch), dtype, options, kernels=TENSOR_CORES)


@pytest.mark.parametrize("options", [{}, DROPOUT], ids=["", "dropout"])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("Tq, Tk, hs", FEWER_QUERIES)
def test_the_last_queries_of_several_keys(Tq, Tk, hs, dtype, options, cupy):
    check(cupy, projections(Tq, Tk, hs, dtype), dtype, options, kernels=TENSOR_CORES)


@pytest.mark.parametrize("options", [{}, DROPOUT], ids=["", "dropout"])
@pytest.mark.parametrize("Tq, Tk, hs", [(17, 17, 33), (65, 65, 8), (20, 70, 16), (6, 6, 140)])
def test_attention_in_float32(Tq, Tk, hs, options, cupy):
    check(cupy, projections(Tq, Tk, hs, "float32"), "float32", options, kernels=PLAIN)


@pytest.mark.parametrize("dtype", cuda_checks.DTYPES)
@pytest.mark.parametrize("Tq, Tk, hs", [(1, 1, 8), (2, 2, 16), (1, 300, 64), (3, 130, 33), (4, 70, 200)])
def test_a_few_queries_of_a_long_cache(Tq, Tk, hs, dtype, cupy):
    """The keys are divided among blocks: five parts of 64 keys for 300 keys, and a part that only some queries see."""
    arrays = projections(Tq, Tk, hs, dtype, (1, 2) if Tk < 300 else (1, 1))
    dout = np.random.default_rng(1).standard_normal(arrays[0].shape).astype(array_dtype(dtype))
    expected, bits = reference(arrays, dout, {})[0], []
    for reverse in (False, True):
        with cuda_checks.in_precision(dtype), running(reverse=reverse) as launches:
            out = AttentionCUDA(cupy, [False] * 3).forward(*map(strict_cupy.ndarray, arrays))
        assert launches == ["attention_split", "attention_join"]
        assert error(cuda_checks.host(out), expected) <= cuda_checks.TOLERANCE[dtype]
        bits.append(cuda_checks.host(out))
    assert np.array_equal(*bits)


def test_backward_after_a_few_queries(cupy):
    """The parts' sum leaves the logarithm that backward needs."""
    kernels = ["attention_split", "attention_join", *TENSOR_CORES[1:]]
    check(cupy, projections(3, 130, 64), "bfloat16", {}, kernels=kernels)


@pytest.mark.parametrize("dtype", cuda_checks.DTYPES)
@pytest.mark.parametrize("Tq", [2, 17])
def test_large_scores_do_not_overflow(Tq, dtype, cupy):
    """Scores of some hundreds: weights are 0 or 1. The gradients of q and k then cancel, and are measured by what they
    are sums of: dout v k / sqrt(hs), of which dout v is a sum of 64 products of about 10, and k is about 30.
    A weight's error is that of a score: 2^-24 of some hundreds."""
    arrays = projections(Tq, 40, 64, dtype, scale=10)
    check(cupy, arrays, dtype, {}, orders=(False,), size=80 * 30 / 8, least=1e-4)


@pytest.mark.parametrize("Tq", [1, 9])
def test_products_of_q_and_k_may_be_too_large_for_float32(Tq, cupy):
    q, k, v = projections(Tq, 9, 64, "float32")
    q, k = np.full_like(q, 3e18), np.full_like(k, 3e18)           # 64 * 9e36 is infinite; an eighth of it is not
    with running():
        out = AttentionCUDA(cupy, [False] * 3).forward(*map(strict_cupy.ndarray, (q, k, v)))
    mean = np.cumsum(v, axis=2, dtype=np.float64) / np.arange(1, 10)[:, None]
    assert error(cuda_checks.host(out), mean[:, :, -Tq:]) < 1e-6


@pytest.mark.parametrize("dtype, hs, kernels", [("float16", 64, TENSOR_CORES), ("float16", 72, PLAIN),
                                                ("bfloat16", 16, PLAIN)])  # fmt: skip
def test_what_an_older_gpu_can(dtype, hs, kernels, cupy, older_gpu):
    check(cupy, projections(20, 20, hs, dtype), dtype, {}, orders=(False,), kernels=kernels)


def test_rows_that_are_not_neighbours_are_copied(cupy):
    q, k, v = (np.asfortranarray(x) for x in projections(20, 20, 16))
    assert q.strides[-1] != q.itemsize
    check(cupy, (q, k, v), "bfloat16", {}, orders=(False,))


def test_addresses_that_are_no_multiple_of_16_bytes(cupy):
    """One element further: the rows are read element by element."""
    q, k, v = projections(20, 20, 16)
    memory = np.empty(q.size + 1, q.dtype)
    shifted = memory[1:].reshape(q.shape)
    shifted[...] = q
    assert shifted.ctypes.data % 16 and not q.ctypes.data % 16
    check(cupy, (shifted, k, v), "bfloat16", {}, orders=(False,), kernels=TENSOR_CORES)


# -- dropout's mask ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("Tq, Tk, hs, dtype", [(40, 40, 40, dtype) for dtype in cuda_checks.DTYPES]
                         + [(9, 70, 70, dtype) for dtype in HALVES])  # fmt: skip
def test_the_mask_is_the_references(Tq, Tk, hs, dtype, cupy):
    """With equal scores and v the identity, out is the weights: what is dropped is 0. With dout the identity, dv is."""
    shape = 2, 1, Tq, hs
    options = dict(p=0.4, key=2**64 - 3, first=2**40)
    keep = keep_mask(np, (2, 1, Tq, Tk), **options, dtype=np.float64)
    seen = np.arange(Tk) <= np.arange(Tk - Tq, Tk)[:, None]
    dtype_ = array_dtype(dtype)
    k = np.zeros((2, 1, Tk, hs), dtype_)
    v = np.broadcast_to(np.eye(Tk, hs, dtype=np.float32).astype(dtype_), k.shape)
    dout = np.broadcast_to(np.eye(Tq, hs, dtype=np.float32).astype(dtype_), shape)
    for reverse in (False, True):
        (out, _, _, dv), _ = run(cupy, (np.zeros(shape, dtype_), k, v), dout, dtype, options, reverse)
        assert np.array_equal(cuda_checks.host(out)[..., :Tk] != 0, (keep != 0) & seen)
        assert np.array_equal(cuda_checks.host(dv)[..., :Tq] != 0, ((keep != 0) & seen).swapaxes(-1, -2))


def test_a_probability_is_rounded_as_the_reference_rounds_it(cupy):
    """The hash's 24 bits are compared with float32's p: at the edge, one number is kept and the one below is not."""
    for p in (0.1, 0.25, 1 / 3, 2.0**-24, 1 - 2.0**-24):
        _, _, threshold, factor = dropout_hash(cupy, p, 1, 2)
        below, at = (np.float32(int(threshold) + i) * np.float32(2.0**-24) for i in (-1, 0))
        assert not below >= np.float32(p) and at >= np.float32(p) and factor == np.float32(1 / (1 - p))


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", cuda_checks.DTYPES)
def test_gradients_are_the_gradient_of_the_projection(dtype, cupy):
    """dq, dk and dv lie as split_heads cut q, k and v, so its backward returns their array; out lies as merge_heads
    returns it."""
    B, T, nh, hs = 2, 9, 3, 8
    x = np.random.default_rng(0).standard_normal((B, T, 3 * nh * hs)).astype(array_dtype(dtype))
    with cuda_checks.in_precision(dtype), running() as launches:
        split, node = SplitHeadsCUDA(cupy, [True]), AttentionCUDA(cupy, [True] * 3)
        out = node.forward(*split.forward(strict_cupy.ndarray(x), nh))
        assert out.transpose(0, 2, 1, 3).flags.c_contiguous
        gradients = node.backward(out)
        (dx,) = split.backward(gradients)
        copied = [gradient.copy() for gradient in gradients]
        (other,) = split.backward(copied)
        (swapped,) = split.backward((gradients[1], gradients[0], gradients[2]))
    assert dx.shape == x.shape and dx.data.ptr == gradients[0].data.ptr
    assert other.data.ptr != copied[0].data.ptr and np.array_equal(other.get(), dx.get())
    assert not np.array_equal(swapped.get(), dx.get()) and len(launches) == 4


def test_what_is_left_to_the_reference(cupy):
    def supports(*shapes, dtype=np.float32):
        return AttentionCUDA.supports(*(cupy.empty(shape, dtype) for shape in shapes))

    assert supports((5, 4), (5, 4), (5, 4)) and supports((2, 3, 1, 256), (2, 3, 9, 256), (2, 3, 9, 256))
    assert not supports((5, 257), (5, 257), (5, 257)) and not supports((6, 4), (5, 4), (5, 4))
    assert not supports((5, 4), (5, 4), (5, 4), dtype=np.float64) and not supports((0, 4), (5, 4), (5, 4))
    assert not supports((1, 1, 1, 5, 4), (1, 1, 1, 5, 4), (1, 1, 1, 5, 4))


# -- sizes that are written down twice ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tiles", attention_tiles.TENSOR_CORES.values(), ids=lambda tiles: tiles.file)
def test_the_shared_memory_is_that_of_the_kernels_constants(tiles):
    constants = dict(re.findall(r"^const (?:int|bool) (\w+) = (\w+);", source(tiles.file, "float16"), re.MULTILINE))
    HS, M, KEYS, QUERIES = (int(constants[name]) for name in ("HS", "M", "KEYS", "QUERIES"))
    assert tiles == attention_tiles._tiles_of(tiles.file, HS, 64 * M, KEYS, QUERIES)
    assert constants["DROPS"] == str("dropout" in tiles.file).lower()
    assert attention_tiles.TENSOR_CORES[HS, "dropout" in tiles.file] is tiles


@nvrtc.needs_nvrtc
def test_registers_in_the_docstring_are_those_of_the_compiler():
    rows = re.findall(r"^    (forward|dk, dv|dq) +(\d+), (\d+) +([\d,]+) +(\d+), (\d+) +([\d,]+)$", attention.__doc__,
                      re.MULTILINE)  # fmt: skip
    names = {"forward": "forward", "dk, dv": "dkdv", "dq": "dq"}
    assert len(rows) == 3
    for row in rows:
        for HS, (on_80, on_90, shared) in ((64, row[1:4]), (128, row[4:7])):
            tiles, name = attention_tiles.TENSOR_CORES[HS, False], names[row[0]]
            for architecture, written in ((80, on_80), (90, on_90)):
                used = nvrtc.cubins(tiles.file, "bfloat16", architecture)[f"attention_{name}"].registers
                assert abs(used - int(written)) <= (0 if nvrtc_version() == (13, 0) else 24)
            assert tiles.blocks[name].shared == int(shared.replace(",", ""))


def nvrtc_version():
    major, minor = ctypes.c_int(), ctypes.c_int()
    assert nvrtc.load_library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)) == 0
    return major.value, minor.value


# -- planted faults ----------------------------------------------------------------------------------------------------

DIFFERS, SHARED, OUTSIDE = "differs from the reference", "race in shared|nothing has written", "outside|beyond the end"
ANY = f"{DIFFERS}|{SHARED}|{OUTSIDE}"
WAIT = "        cp_async_wait<0>();\n"
BARRIER = "        __syncthreads();" + 42 * " " + "// the tile is there, and all have left the one before\n"
NEXT = {  # the line that follows
    "forward": "        int next",
    "dkdv": "        if (query + QUERIES < Tq)",
    "dq": "        if (key + KEYS < keys)",
}
QUERY_LOOP, KEY_LOOP = "query < Tq; query += QUERIES", "key < keys; key += KEYS"
SHUFFLE = "above = fmaxf(above, __shfl_xor_sync(0xffffffffu, above, 2));"


def without(kernel, part):
    """What is replaced, and by what, to leave the wait or the barrier out of a kernel's loop."""
    whole = WAIT + BARRIER + NEXT[kernel]
    return whole, whole.replace(part, "")


# What it is: (file, what is replaced in it, by what, what the checks say).
FAULTS = {
    "forward: nothing waits for the copies": ("attention_forward", *without("forward", WAIT), ANY),
    "forward: the barrier": ("attention_forward", *without("forward", BARRIER), SHARED),
    "forward: one key too many is seen": ("attention_forward", "i / 2 * 8 + ahead)", "i / 2 * 8 + ahead + 1)", DIFFERS),
    "forward: the last key is not seen": ("attention_forward", "t + i % 2 > mine", "t + i % 2 >= mine", DIFFERS),
    "forward: one tile of keys too few": ("attention_forward", KEY_LOOP, "key < keys - KEYS; key += KEYS", DIFFERS),
    "forward: a warp leaves out its last tile": (
        "attention_forward", "16 * M - 1 + ahead) cont", "ahead) cont", DIFFERS),
    "forward: the old sum is not scaled down": ("attention_forward", "* factor + sum", "+ sum", DIFFERS),
    "forward: a row is in 4 lanes, not 2": (
        "attention_forward", SHUFFLE, "", DIFFERS),
    "forward: both halves of the memory are one": ("attention_forward", "turn ^= 1", "turn ^= 0", ANY),
    "tiles: written unswizzled": ("attention_tiles", "place<HS>(row, column / 8)", "row * HS + column", DIFFERS),
    "tiles: read unswizzled": (
        "attention_tiles", "tile + place<HS>(row + lane % 16, 2 * k + lane / 16)",
        "tile + (row + lane % 16) * HS + (2 * k + lane / 16) * 8", DIFFERS),
    "tiles: the keys' rows in the wrong order": (
        "attention_tiles", "lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2", "lane % 16, 2 * k + lane / 16", DIFFERS),
    "tiles: products of one k too few": ("attention_tiles", "k < HS / 16", "k < HS / 16 - 1", DIFFERS),
    "tiles: rows behind the last are read": ("attention_tiles", "row + i * STEP < valid", "true", ANY),
    "dkdv: nothing waits for the copies": ("attention_backward", *without("dkdv", WAIT), ANY),
    "dkdv: the barrier": ("attention_backward", *without("dkdv", BARRIER), SHARED),
    "dkdv: one tile of queries too few": (
        "attention_backward", QUERY_LOOP, "query < Tq - QUERIES; query += QUERIES", DIFFERS),
    "dkdv: it begins one tile too late": (
        "attention_backward", "max(0, first - ahead)", "max(0, first - ahead + 64)", DIFFERS),
    "dkdv: one key too many": ("attention_backward", "t + i % 2 + ahead)", "t + i % 2 + ahead + 1)", DIFFERS),
    "dkdv: delta of the other tile": (
        "attention_backward", "deltas[turn * QUERIES", "deltas[(turn ^ 1) * QUERIES", ANY),
    "dq: nothing waits for the copies": ("attention_backward", *without("dq", WAIT), ANY),
    "dq: the barrier": ("attention_backward", *without("dq", BARRIER), SHARED),
    "dq: one tile of keys too few": ("attention_backward", KEY_LOOP, "key < keys - KEYS; key += KEYS", DIFFERS),
    "dq: one key too many": ("attention_backward", "i / 2 * 8 + ahead)", "i / 2 * 8 + ahead + 1)", DIFFERS),
    "delta: a channel is left out": ("attention_delta", "j < 8; j++) sum", "j < 7; j++) sum", DIFFERS),
    "dropout: the mask of the next row": ("attention", "first + row *", "first + columns + row *", DIFFERS),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, cupy):
    file, old, new, message = FAULTS[fault]
    options = DROPOUT if fault.startswith("dropout") else {}
    with cuda_checks.planted(file, old, new):
        for reverse in (False, True):
            with pytest.raises((AssertionError, KernelFault), match=message):
                check(cupy, projections(100, 140, 56), "bfloat16", options, (reverse,))


SLICE = "        __syncthreads();\n#pragma unroll\n        for (int k"
TILE = "        __syncthreads();\n#pragma unroll UNROLLED"
PARTS = "    __syncthreads();\n    partial"
ELSEWHERE = {  # what it is: (shape, file, what is replaced in it, by what, what the checks say)
    "plain: the barrier before scores": ((20, 30, 24), "attention_plain", SLICE, SLICE[25:], SHARED),
    "plain: the barrier before sums": ((20, 30, 24), "attention_plain", TILE, TILE[25:], SHARED),
    "plain: one key too many": ((20, 30, 24), "attention_plain", "c > query + ahead", "c > query + ahead + 1", DIFFERS),
    "plain: ds sees one key too many": ((20, 30, 24), "attention_plain", "j > i + ahead", "j > i + ahead + 1", DIFFERS),
    "plain: channels behind the head's end": ((20, 30, 24), "attention_plain", "&& depth + column < hs", "", ANY),
    "cached: the barrier": ((2, 150, 24), "attention_cached", PARTS, PARTS[21:], SHARED),
    "cached: one key too many": (
        (2, 150, 24), "attention_cached", "Tk - Tq + 1)", "Tk - Tq + 2)", f"{DIFFERS}|{OUTSIDE}"),
    "cached: parts are added unscaled": (
        (2, 150, 24), "attention_cached", "part[2 + column] * exp2f(part[0] - above)", "part[2 + column]", DIFFERS),
    "cached: parts overlap": (
        (2, 150, 24), "attention_cached", "begin + length, query", "begin + length + 1, query", DIFFERS),
}  # fmt: skip


@pytest.mark.parametrize("fault", ELSEWHERE)
def test_a_planted_fault_without_tensor_cores_is_found(fault, cupy):
    shape, file, old, new, message = ELSEWHERE[fault]
    with cuda_checks.planted(file, old, new):
        for reverse in (False, True):
            with pytest.raises((AssertionError, KernelFault), match=message):
                check(cupy, projections(*shape, "float32"), "float32", {}, (reverse,))
