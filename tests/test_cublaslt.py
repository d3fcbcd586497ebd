"""Matrix products of the GPU without one: what is sent to cuBLASLt is computed on the host (fake_cublaslt.c) and
compared with float64, and what ops/kernels/cuda/cublaslt.py knows of the library is compared with NVIDIA's headers."""

import ctypes
import gc
import glob
import itertools
import os
import re
import shutil
import subprocess
import sysconfig
import threading

import fake_cublaslt
import numpy as np
import pytest
import strict_cupy
from cuda_checks import check_kernel, in_precision
from cuda_host import needs_compiler, running
from product_checks import (
    BFLOAT16,
    EPS,
    FLOAT16,
    FLOAT32,
    LAYOUTS,
    PAIRS,
    SHAPES,
    all_kinds_of_products,
    check,
    exact,
    laid_out,
    numbers,
)
from samples import Sample

import ops
from ops.kernels.cuda import aligned_parts, cublaslt, cublaslt_plan, cublaslt_problem, cupy_products, mlp, products
from ops.kernels.cuda.linear import LinearCUDA
from ops.kernels.cuda.products import batched_gemm, gemm
from tinygrad2 import Tensor, halves
from tinygrad2.dispatch import OPS
from tinygrad2.gpu.choices import Choices, choosing
from tinygrad2.writes import wrote


@pytest.fixture
def cp(monkeypatch):
    return strict_cupy.install(monkeypatch)


@pytest.fixture
def lt(cp, monkeypatch):
    return fake_cublaslt.install(monkeypatch)


# -- products ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, result", PAIRS, ids=str)
@pytest.mark.parametrize("layout_a, layout_b", list(itertools.product(LAYOUTS, LAYOUTS)))
def test_a_product_of_matrices_however_they_lie(cp, lt, layout_a, layout_b, dtype, result):
    for M, K, N in SHAPES:
        a, b = numbers((M, K), dtype), numbers((K, N), dtype, 1)
        got = gemm(laid_out(cp, a, layout_a), laid_out(cp, b, layout_b), dtype=result)
        check(got, exact(a, b), result, np.abs(exact(np.abs(a), np.abs(b))))
    assert lt.fake_products() > 0


@pytest.mark.parametrize("dtype, result", PAIRS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_result_goes_where_it_belongs_or_is_added(cp, lt, layout, dtype, result):
    for (M, K, N), accumulate in itertools.product(SHAPES, (False, True)):
        a, b, before = numbers((M, K), dtype), numbers((K, N), dtype, 1), numbers((M, N), result, 2)
        out = laid_out(cp, before, layout)
        memory = out
        while memory._a.base is not None:
            memory = strict_cupy.ndarray(memory._a.base)
        around = np.isnan(cp.asnumpy(memory).astype(np.float32)).sum()
        assert gemm(cp.asarray(a), cp.asarray(b), out, accumulate) is out
        expected = exact(a, b) + accumulate * before.astype(np.float64)
        size = np.abs(exact(np.abs(a), np.abs(b))) + np.abs(before.astype(np.float64))
        in_two_steps = accumulate and layout in ("neither", "reversed")
        check(out, expected, result, size, 1.01 * EPS[result] * size * in_two_steps)
        assert np.isnan(cp.asnumpy(memory).astype(np.float32)).sum() == around  # nothing was written beside it


@pytest.mark.parametrize("dtype, result", PAIRS, ids=str)
@pytest.mark.parametrize("M, K, N", SHAPES)
def test_a_bias_a_factor_and_what_is_there_already(cp, lt, M, K, N, dtype, result):
    a, b, before = numbers((M, K), dtype), numbers((K, N), dtype, 1), numbers((M, N), result, 2)
    bias = numbers((N,), result, 3)
    size = np.abs(exact(np.abs(a), np.abs(b))) + np.abs(bias.astype(np.float64)) + np.abs(before.astype(np.float64))
    for layout, accumulate, scale in itertools.product(("rows", "rows apart", "columns"), (False, True), (1, 0.375)):
        if layout == "columns" and accumulate:
            continue                                              # in two steps, as above
        out = laid_out(cp, before, layout)
        gemm(cp.asarray(a), cp.asarray(b), out, accumulate, cp.asarray(bias), scale=scale)
        expected = scale * exact(a, b) + bias.astype(np.float64) + accumulate * before.astype(np.float64)
        check(out, expected, result, size)


def test_what_is_in_a_result_is_not_read_unless_it_is_added_to(cp, lt):
    out = cp.asarray(np.full((2, 3), np.nan, np.float32))
    gemm(cp.asarray(numbers((2, 5), FLOAT32)), cp.asarray(numbers((5, 3), FLOAT32)), out)
    assert np.isfinite(cp.asnumpy(out)).all()


@pytest.mark.parametrize("how", [1, 2, 3])
def test_a_bias_that_the_library_refuses_is_added_afterwards(cp, lt, how):
    a, b, bias = numbers((9, 30), FLOAT32), numbers((30, 7), FLOAT32, 1), numbers((7,), FLOAT32, 2)
    lt.fake_refuse_bias(how)
    try:
        got = gemm(cp.asarray(a), cp.asarray(b), bias=cp.asarray(bias))
    finally:
        lt.fake_refuse_bias(0)
    check(got, exact(a, b) + bias, FLOAT32, exact(np.abs(a), np.abs(b)) + np.abs(bias))


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16, BFLOAT16], ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_gelu_in_the_product_and_its_gradient(cp, lt, dtype, with_bias):
    M, K, N = 17, 65, 24
    a, b, bias = numbers((M, K), dtype), numbers((K, N), dtype, 1), numbers((N,), dtype, 2)
    aux = laid_out(cp, numbers((M, N + 8), dtype), "rows")[:, :N]
    given = cp.asarray(bias) if with_bias else None
    got = gemm(cp.asarray(a), cp.asarray(b), bias=given, gelu="forward", aux=aux)
    h = exact(a, b) + with_bias * bias.astype(np.float64)
    size = exact(np.abs(a), np.abs(b)) + np.abs(bias.astype(np.float64))
    inner = np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)
    check(aux, h, dtype, size)
    check(got, 0.5 * h * (1 + np.tanh(inner)), dtype, 2 * size)
    h = cp.asnumpy(aux).astype(np.float64)                        # what backward reads is rounded
    inner, slope = np.sqrt(2 / np.pi) * (h + 0.044715 * h**3), np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * h**2)
    derivative = 0.5 * (1 + np.tanh(inner)) + 0.5 * h * (1 - np.tanh(inner) ** 2) * slope
    got = gemm(cp.asarray(a), cp.asarray(b), gelu="backward", aux=aux)
    check(got, exact(a, b) * derivative, dtype, 2 * size)
    with pytest.raises(ValueError, match="a multiple of 8 apart"):
        gemm(cp.asarray(a), cp.asarray(b), gelu="forward", aux=cp.empty((M, N + 1), dtype=dtype)[:, :N])
    with pytest.raises(ValueError, match="contiguous rows"):
        gemm(cp.asarray(a), cp.asarray(b), gelu="forward", aux=cp.empty((N, M + 7), dtype=dtype)[:, :M].T)
    other = FLOAT32 if dtype == FLOAT16 else FLOAT16
    with pytest.raises(ValueError, match="not like the result"):
        gemm(cp.asarray(a), cp.asarray(b), gelu="forward", aux=cp.empty((M, N), dtype=other))
    with pytest.raises(ValueError, match="takes no bias"):
        gemm(cp.asarray(a), cp.asarray(b), bias=cp.asarray(bias), gelu="backward", aux=aux)


BATCHES = [((2,), (2,)), ((3, 2), (3, 2)), ((3, 1), (2,)), ((1,), (4,)), ((2, 3), ()), ((), (3,)), ((1, 2), (3, 1))]


@pytest.mark.parametrize("dtype, result", PAIRS, ids=str)
@pytest.mark.parametrize("batch_a, batch_b", BATCHES)
def test_batches(cp, lt, batch_a, batch_b, dtype, result):
    for (M, K, N), layout, accumulate in itertools.product(SHAPES[1:5], LAYOUTS, (False, True)):
        a, b = numbers((*batch_a, M, K), dtype), numbers((*batch_b, K, N), dtype, 1)
        before = numbers((*np.broadcast_shapes(batch_a, batch_b), M, N), result, 2)
        out = laid_out(cp, before, layout)
        operands = laid_out(cp, a, layout), laid_out(cp, b, "rows" if layout == "offset" else layout)
        assert batched_gemm(*operands, out, accumulate) is out
        size = np.abs(exact(np.abs(a), np.abs(b))) + np.abs(before.astype(np.float64))
        extra = 1.01 * EPS[result] * size * (accumulate and layout in ("neither", "reversed"))
        check(out, exact(a, b) + accumulate * before.astype(np.float64), result, size, extra)
        if not accumulate:
            check(batched_gemm(*operands, dtype=result), exact(a, b), result, size)


def test_heads_of_attention_are_read_in_place_where_they_are_equally_far_apart(cp, lt, monkeypatch):
    T, H, D = 10, 3, 8
    qkv = numbers((T, 3, H, D), BFLOAT16)
    q, k, v = (cp.asarray(qkv)[:, i].swapaxes(0, 1) for i in range(3))         # (H, T, D), rows 3 H D apart
    monkeypatch.setattr(strict_cupy.cupy, "ascontiguousarray", None, raising=False)
    scores = batched_gemm(q, k.swapaxes(-1, -2), dtype=FLOAT32, scale=0.5)
    one, other = (qkv[:, i].swapaxes(0, 1) for i in (0, 1))
    size = exact(np.abs(one), np.abs(other).swapaxes(-1, -2))
    check(scores, 0.5 * exact(one, other.swapaxes(-1, -2)), FLOAT32, size)


def test_batches_that_are_not_equally_far_apart_are_copied(cp, lt):
    a, b, before = numbers((3, 2, 5, 9), FLOAT32), numbers((3, 2, 9, 4), FLOAT32, 1), numbers((3, 2, 5, 4), FLOAT32, 2)
    size = exact(np.abs(a), np.abs(b)) + np.abs(before)

    def apart(values):
        memory = cp.asarray(np.full((3, 5, *values.shape[2:]), np.nan, np.float32))
        view = memory[:, 1:3]
        view[...] = cp.asarray(values)
        return view

    for accumulate in (False, True):
        out = apart(before)
        batched_gemm(apart(a), apart(b), out, accumulate)
        check(out, exact(a, b) + accumulate * before, FLOAT32, size)
    got = batched_gemm(cp.asarray(a[::-1, 0].copy())[::-1], cp.asarray(b)[:, 0])
    check(got, exact(a[:, 0], b[:, 0]), FLOAT32, size[:, 0])


def test_factors_that_are_broadcast_are_copied(cp, lt):
    row, column, b = numbers((7,), FLOAT16), numbers((5,), FLOAT16, 1), numbers((7, 4), FLOAT16, 2)
    for a in (np.broadcast_to(row, (5, 7)), np.broadcast_to(column[:, None], (5, 7))):
        on_device = cp.broadcast_to(cp.asarray(a[:1] if a.strides[0] == 0 else a[:, :1]), (5, 7))
        assert 0 in on_device.strides
        check(gemm(on_device, cp.asarray(b)), exact(a, b), FLOAT16, exact(np.abs(a), np.abs(b)))
        check(gemm(cp.asarray(b).T, on_device.T), exact(b.T, a.T), FLOAT16, exact(np.abs(b.T), np.abs(a.T)))


@pytest.mark.parametrize("M, K, N", [(0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0)])
def test_empty_products(cp, lt, M, K, N):
    before, products_before = numbers((M, N), FLOAT32), lt.fake_products()
    a, b, bias = cp.zeros((M, K), dtype=BFLOAT16), cp.zeros((K, N), dtype=BFLOAT16), cp.asarray(numbers((N,), FLOAT32))
    check(gemm(a, b, cp.asarray(before)), np.zeros((M, N)), FLOAT32, 0)
    check(gemm(a, b, cp.asarray(before), accumulate=True), before.astype(np.float64), FLOAT32, 0)
    check(gemm(a, b, bias=bias, dtype=FLOAT32), np.zeros((M, N)) + cp.asnumpy(bias), FLOAT32, 0)
    batch = batched_gemm(cp.zeros((2, M, K), dtype=FLOAT16), cp.zeros((2, K, N), dtype=FLOAT16))
    check(batch, np.zeros((2, M, N)), FLOAT16, 0)
    assert lt.fake_products() == products_before


@pytest.mark.parametrize("precision, tf32", [("highest", False), ("high", True), ("medium", True), ("bfloat16", False)])
def test_the_precision_of_float32_products(cp, lt, precision, tf32):
    a, b = np.full((3, 4), 1 + 2.0**-12, np.float32), np.ones((4, 5), np.float32)
    got = cp.asnumpy(gemm(cp.asarray(a), cp.asarray(b), precision=precision))
    assert (got == 4 * (1 if tf32 else 1 + 2.0**-12)).all()
    halves = [cp.asarray(x.astype(FLOAT16)) for x in (a, b)]
    assert (cp.asnumpy(gemm(*halves, precision=precision, dtype=FLOAT32)) == 4).all()


# -- cuts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, result", PAIRS, ids=str)
@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("M, K, N", [(24, 16, 33), (33, 24, 16), (24, 35, 16), (37, 21, 43), (40, 24, 8)])
def test_a_product_in_aligned_parts_is_the_same(cp, lt, monkeypatch, layout, M, K, N, dtype, result):
    """All matrices have rows, or columns, at multiples of 16 bytes, so that axes that are no multiple of 8 are cut."""
    monkeypatch.setattr(aligned_parts, "WORTH", 0)
    monkeypatch.setattr(aligned_parts, "LEAST", 8)
    shapes = (M, K), (K, N), (M, N)
    a, b, before = (numbers(shape, d, i) for i, (shape, d) in enumerate(zip(shapes, (dtype, dtype, result))))
    bias = numbers((N,), result, 3)
    size = exact(np.abs(a), np.abs(b)) + np.abs(bias.astype(np.float64)) + np.abs(before.astype(np.float64))
    for accumulate, with_bias in itertools.product((False, True), (False, True)):
        left, right, out = (aligned(cp, values, layout) for values in (a, b, before))
        ran = lt.fake_products()
        gemm(left, right, out, accumulate, cp.asarray(bias) if with_bias else None, scale=0.5)
        ran = lt.fake_products() - ran
        if layout == "rows":
            assert ran == (2 if K % 8 else 1) * (2 if N % 8 else 1)
        expected = 0.5 * exact(a, b) + with_bias * bias.astype(np.float64) + accumulate * before.astype(np.float64)
        twice = 1.01 * EPS[result] * size * (K % 8 > 0 or (layout == "columns" and with_bias))
        check(out, expected, result, size, twice)


def aligned(cp, values, layout):
    """A device array with these values, whose rows (or columns) begin at multiples of 16 bytes."""
    values = values if layout == "rows" else values.T
    width = -(-values.shape[1] // 8) * 8
    memory = cp.asarray(np.full(len(values) * width + 8, np.nan, values.dtype))
    start = -memory.data.ptr % 16 // values.itemsize
    view = memory[start : start + len(values) * width].reshape(len(values), width)[:, : values.shape[1]]
    view[...] = cp.asarray(values)
    return view if layout == "rows" else view.T


def test_which_products_are_cut(cp, lt):
    Matrix = cublaslt_problem.Matrix

    def place(M, K, N, left=False, right=False, ld=50304, alignment=256):
        matrices = Matrix("bfloat16", M, K, left, ld, 0, alignment), Matrix("bfloat16", K, N, right, ld, 0, alignment)
        return aligned_parts.where_to_cut(*matrices, Matrix("bfloat16", M, N, False, ld, 0, alignment))

    assert place(65536, 768, 50257, right=True) == ("N", 50256)   # the head of GPT-2: logits,
    assert place(65536, 50257, 768) == ("K", 50256)               # the gradient of its input,
    assert place(50257, 65536, 768, left=True) == ("M", 50256)    # and of its weight
    assert place(65536, 768, 50304, right=True) is None
    assert place(50257, 768, 3072) is None                        # M is contiguous in none of the matrices
    assert place(65536, 768, 50257, right=True, ld=50257) is None  # no row begins at a multiple of 16 bytes
    assert place(65536, 768, 50257, right=True, alignment=8) is None
    assert place(64, 64, 65) is None


# -- plans -------------------------------------------------------------------------------------------------------------


def test_a_plan_is_made_once_for_each_kind_of_product(cp, lt):
    a, b = cp.asarray(numbers((16, 32), BFLOAT16)), cp.asarray(numbers((32, 48), BFLOAT16))
    out = gemm(a, b)
    chosen, run = lt.fake_heuristics(), lt.fake_products()
    for seed in range(3):
        a[...] = cp.asarray(numbers((16, 32), BFLOAT16, seed))
        gemm(a, b, out, scale=0.5 * seed)
    assert (lt.fake_heuristics(), lt.fake_products()) == (chosen, run + 3)
    gemm(a, b, dtype=FLOAT32)
    gemm(a[:8], b, out[:8])
    assert lt.fake_heuristics() == chosen + 2


def test_descriptors_go_with_their_plan(cp, lt):
    gc.collect()
    alive = lt.fake_alive()
    for M in range(1, 20):
        gemm(cp.asarray(numbers((M, 3), FLOAT32)), cp.asarray(numbers((3, 5), FLOAT32)))
    assert lt.fake_alive() > alive
    products.plan.cache_clear()
    gc.collect()
    assert lt.fake_alive() == alive


def test_a_product_runs_on_the_current_stream_in_memory_of_its_own(cp, lt, monkeypatch):
    monkeypatch.setattr(cp.cuda, "get_current_stream", lambda: type("Stream", (), {"ptr": 77}))
    seen = []
    monkeypatch.setattr(products, "_workspaces", seen_workspaces := {})
    original = cublaslt_plan.Plan.run
    monkeypatch.setattr(cublaslt_plan.Plan, "run", lambda self, *args: (seen.append(args), original(self, *args)))
    gemm(cp.asarray(numbers((3, 70), FLOAT32)), cp.asarray(numbers((70, 5), FLOAT32)))
    (workspace,) = seen_workspaces.values()
    assert lt.fake_last_stream() == 77 and list(seen_workspaces) == [(0, 77)]
    assert workspace.nbytes == cublaslt_plan.WORKSPACE and seen[0][-2:] == (workspace.data.ptr, 77)


def test_threads_that_share_a_plan_keep_their_biases(cp, lt):
    """The address of a bias is a part of the plan's descriptor, and ctypes lets other threads run during a call."""
    a, b = cp.zeros((64, 64), dtype=FLOAT32), cp.zeros((64, 48), dtype=FLOAT32)
    memory = cp.asarray(np.repeat(np.arange(8, dtype=np.float32), 64).reshape(8, 64))
    outs = cp.zeros((8, 64 * 48 + 64), dtype=FLOAT32)
    wrong = []

    def work(i):
        bias = memory[i, :48]                                     # 256 bytes apart: aligned alike, so one plan
        out = outs[i, : 64 * 48].reshape(64, 48)
        for _ in range(40):
            gemm(a, b, out, bias=bias)
            if (cp.asnumpy(out) != i).any():
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_nothing_in_a_product_waits_for_the_device(cp, lt):
    a, b = cp.asarray(numbers((17, 65), BFLOAT16)), cp.asarray(numbers((65, 9), BFLOAT16))
    with strict_cupy.no_sync():
        gemm(a, b, bias=cp.zeros((9,), dtype=FLOAT32), dtype=FLOAT32)
        batched_gemm(a[None], b[None])


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_before_the_library_is_called(cp, lt):
    a, b = cp.zeros((3, 4), dtype=BFLOAT16), cp.zeros((4, 5), dtype=BFLOAT16)
    with pytest.raises(ValueError, match=r"shapes do not fit: a \(3, 4\) bfloat16, b \(3, 4\) bfloat16"):
        gemm(a, a)
    with pytest.raises(TypeError, match="no product of these dtypes"):
        gemm(a, b.astype(np.float32))
    with pytest.raises(TypeError, match="no product of these dtypes"):
        gemm(a, b, dtype=FLOAT16)
    with pytest.raises(TypeError, match="no product of these dtypes"):
        gemm(a.astype(np.float64), b.astype(np.float64))
    with pytest.raises(ValueError, match="bias"):
        gemm(a, b, bias=cp.zeros((5,), dtype=FLOAT32))
    with pytest.raises(ValueError, match="bias"):
        gemm(a, b, bias=cp.zeros((10,), dtype=BFLOAT16)[::2])
    with pytest.raises(ValueError, match="bias"):
        gemm(a, b, bias=cp.zeros((6,), dtype=BFLOAT16))
    with pytest.raises(ValueError, match="shapes do not fit"):
        batched_gemm(a[None], b[None], cp.zeros((2, 3, 5), dtype=BFLOAT16))


def test_an_error_names_the_call_the_shapes_and_the_dtypes(cp, lt, monkeypatch):
    monkeypatch.setitem(cublaslt.COMPUTE_TYPES, "32F", 64)
    message = (
        r"cuBLASLt has no algorithm for out \(3, 5\) float32, ld 5 = a \(3, 4\) bfloat16, ld 4 "
        r"by b \(4, 5\) bfloat16 transposed, ld 4, compute 32F, epilogue DEFAULT"
    )
    a, b = cp.zeros((3, 4), dtype=BFLOAT16), cp.zeros((5, 4), dtype=BFLOAT16).T
    with pytest.raises(cublaslt.CublasError, match=message):
        gemm(a, b, dtype=FLOAT32)
    monkeypatch.undo()


def test_a_failing_call_is_an_error_of_one_line(cp, lt, monkeypatch):
    monkeypatch.setitem(cublaslt_plan.OPERATION, "TRANSA", (3, ctypes.c_int64))
    message = r"cublasLtMatmulDescSetAttribute returned CUBLAS_STATUS_INVALID_VALUE \(7\) for out \(3, 5\) float32"
    with pytest.raises(cublaslt.CublasError, match=message):
        gemm(cp.zeros((3, 4), dtype=FLOAT32), cp.zeros((4, 5), dtype=FLOAT32))
    assert lt.fake_reason() == b"attribute of another size"


# -- planted mistakes --------------------------------------------------------------------------------------------------


def changed(monkeypatch, name, **fields):
    """The fields that `name`, a function of cublaslt_problem or a Problem, returns are changed before they are used."""
    original = getattr(products, name)

    def other(*args, **kwargs):
        made = original(*args, **kwargs)
        return made and made._replace(**{field: change(made) for field, change in fields.items()})

    monkeypatch.setattr(products, name, other)


PLANTED = {
    "leading dimension of packed rows": lambda m: changed(m, "matrix_of", distance=lambda x: x.columns),
    "leading dimension too large": lambda m: changed(m, "matrix_of", distance=lambda x: x.distance + 1),
    "leading dimension of the other side": lambda m: changed(m, "matrix_of", distance=lambda x: x.rows),
    "rows and columns": lambda m: changed(m, "matrix_of", rows=lambda x: x.columns, columns=lambda x: x.rows),
    "transposition forgotten": lambda m: changed(m, "matrix_of", transposed=lambda x: False),
    "batch stride of packed matrices": lambda m: changed(m, "matrix_of", stride=lambda x: x.rows * x.columns),
    "no batch stride": lambda m: changed(m, "matrix_of", stride=lambda x: 0),
    "dtype of the result": lambda m: changed(m, "Problem", out=lambda x: x.out._replace(dtype=x.a.dtype)),
    "batch of one": lambda m: changed(m, "Problem", batch=lambda x: 1),
    "a and b": lambda m: changed(m, "Problem", a=lambda x: x.b, b=lambda x: x.a),
    "alignment as if at the start": lambda m: changed(m, "matrix_of", alignment=lambda x: 256),
    "TRANSA": lambda m: m.setitem(cublaslt_plan.OPERATION, "TRANSA", (5, ctypes.c_int32)),
    "TRANSB": lambda m: m.setitem(cublaslt_plan.OPERATION, "TRANSB", (3, ctypes.c_int32)),
    "size of an attribute": lambda m: m.setitem(cublaslt_plan.PREFERENCE, "MAX_WORKSPACE_BYTES", (1, ctypes.c_uint32)),
    "batch offset in another attribute": lambda m: m.setitem(
        cublaslt_plan.LAYOUT, "STRIDED_BATCH_OFFSET", (7, ctypes.c_int64)
    ),
    "bfloat16": lambda m: m.setitem(cublaslt.DATA_TYPES, "bfloat16", 2),
    "epilogue": lambda m: m.setitem(cublaslt.EPILOGUES, "BIAS", 2),
    "epilogue without bias": lambda m: m.setitem(cublaslt.EPILOGUES, "BIAS", 1),
    "sums in 16 bits": lambda m: m.setitem(cublaslt.REDUCTIONS, "COMPUTE_TYPE", 6),
    "TF32 for all": lambda m: m.setitem(cublaslt.COMPUTE_TYPES, "32F", 77),
    "a smaller workspace": lambda m: m.setattr(products, "WORKSPACE", 8),
    "ones for zeros": lambda m: m.setattr(cublaslt_plan, "_ZERO", ctypes.c_float(1.0)),
    "the bias of another call": lambda m: m.setitem(cublaslt_plan.OPERATION, "BIAS_POINTER", (11, ctypes.c_void_p)),
}


def test_products_without_a_mistake_pass(cp, lt):
    all_kinds_of_products(cp)


@pytest.mark.parametrize("mistake", list(PLANTED))
def test_a_planted_mistake_is_found(cp, lt, monkeypatch, mistake):
    PLANTED[mistake](monkeypatch)
    with pytest.raises((AssertionError, cublaslt.CublasError)):
        all_kinds_of_products(cp)


# -- ops ---------------------------------------------------------------------------------------------------------------


def arrays_for_linear(cp, dtype):
    shapes = (2, 9, 17), (17, 5), (5,), (2, 9, 5)
    x, weight, bias, dout = (numbers(shape, FLOAT32, i) for i, shape in enumerate(shapes))
    return cp.asarray(x.astype(dtype)), cp.asarray(weight), cp.asarray(bias), cp.asarray(dout.astype(dtype))


@needs_compiler
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16, BFLOAT16], ids=str)
def test_linear_is_one_product_and_two_in_backward(cp, lt, dtype):
    x, weight, bias, dout = arrays_for_linear(cp, dtype)
    gradient = cp.asarray(np.full(200, 2, np.float32))
    place = gradient[3:88].reshape(17, 5)                         # a parameter's part of the flat buffer
    with in_precision(dtype.name), running():
        before = lt.fake_products()
        node = LinearCUDA(cp, (True, True, True))
        out = node.forward(x, weight, bias)
        assert lt.fake_products() == before + 1 and out.dtype == dtype
        dx, dweight, dbias = node.backward(dout)
        dweight.write_to(place, accumulate=True)
        dweight.write_to(place, accumulate=True)
        assert lt.fake_products() == before + 4 and dx.dtype == dtype
        assert dbias.dtype == dweight.dtype == FLOAT32
    rows, drows = (cp.asnumpy(a).astype(np.float64).reshape(18, -1) for a in (x, dout))
    check(place, 2 + 2 * rows.T @ drows, FLOAT32, 2 * np.abs(rows.T) @ np.abs(drows) + 2)   # float32, twice added to
    assert (cp.asnumpy(gradient)[[0, 1, 2, *range(88, 200)]] == 2).all()


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("way", ["separate", "fused"])
def test_mlp_with_gelu_in_its_products_or_not(cp, lt, monkeypatch, dtype, way):
    """Results and gradients, those of the biases too, are the reference's in both; only the tanh form can be fused."""
    class Chosen(Choices):
        def get(self, key):
            return way if key.startswith("GELU") else None

    epilogues, plan = [], products.plan
    noted = lambda problem, made: (epilogues.append(problem.epilogue), plan(problem, made))[1]  # noqa: E731
    monkeypatch.setattr(products, "plan", noted)
    for shapes, erf, fused in ((((3, 7, 5), (5, 24), (24,), (24, 9), (9,)), False, {"GELU_AUX_BIAS", "DGELU"}),
                               (((6, 5), (5, 32), None, (32, 9), (9,)), False, {"GELU_AUX", "DGELU"}),
                               (((6, 5), (5, 3), (3,), (3, 9), None), False, set()),
                               (((6, 5), (5, 16), (16,), (16, 9), (9,)), True, set())):  # fmt: skip
        epilogues.clear()
        with choosing(Chosen()):
            assert check_kernel(mlp.MLPCUDA, OPS["mlp"], cp, Sample(shapes, dict(exact=erf)), dtype)
        assert {"GELU_AUX", "GELU_AUX_BIAS", "DGELU"} & set(epilogues) == (fused if way == "fused" else set())


def test_a_weight_is_cast_once_until_it_is_written_to(cp, lt, monkeypatch):
    casts, original = [], halves.cast_to_half
    monkeypatch.setattr(halves, "cast_to_half", lambda values, out: (casts.append(1), original(values, out)))
    x, weight, _, dout = arrays_for_linear(cp, BFLOAT16)
    with in_precision("bfloat16"), running():
        for step in range(2):
            for _ in range(3):
                node = LinearCUDA(cp, (True, True, False))
                node.forward(x, weight)
                node.backward(dout)
            assert len(casts) == step + 1
            weight *= np.float32(2)
            wrote(weight)


@needs_compiler
def test_a_linear_layer_trains_on_a_device(cp, lt):
    x, weight, bias, dout = (Tensor(a) for a in arrays_for_linear(cp, FLOAT32))
    host = [Tensor(a.numpy()) for a in (x, weight, bias, dout)]
    for tensors in ((x, weight, bias, dout), host):
        for tensor in tensors[:3]:
            tensor.requires_grad_()
        out = ops.linear(*tensors[:3])
        (ops.matmul(out, out.transpose(0, 2, 1)).sum() + (out * tensors[3]).sum()).backward()
    for one, other in zip((x, weight, bias), host):
        assert np.allclose(cp.asnumpy(one.grad), other.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision, how", [
    ("highest", "float32"), ("high", "TF32"), ("medium", "TF32"), ("bfloat16", "bfloat16"), ("float16", "float16"),
])  # fmt: skip
def test_the_user_is_told_what_multiplies(lt, monkeypatch, precision, how):
    assert ops.describe_products("cuda", "auto", precision) == f"{precision}: {how} through cuBLASLt 13.1"
    fake_cublaslt.install(monkeypatch, lambda: None)
    line = ops.describe_products("cuda", "auto", precision)
    assert line.startswith(f"{precision}: {how.replace('TF32', 'float32')} through CuPy") and "nvidia-cublas" in line


# -- without the library -----------------------------------------------------------------------------------------------


def test_without_the_library_cupy_multiplies_and_that_is_said_once(cp, monkeypatch):
    fake_cublaslt.install(monkeypatch, lambda: None)
    cupy_products._say_once.cache_clear()
    a, b, bias = numbers((9, 30), BFLOAT16), numbers((30, 7), BFLOAT16, 1), numbers((7,), FLOAT32, 2)
    before = numbers((9, 7), FLOAT32, 3)
    with pytest.warns(RuntimeWarning, match="libcublasLt.so.13 or .12") as said:
        for accumulate in (False, True):
            out = cp.asarray(before)
            gemm(cp.asarray(a), cp.asarray(b), out, accumulate, cp.asarray(bias), scale=0.5)
            expected = 0.5 * exact(a, b) + bias + accumulate * before
            check(out, expected, FLOAT32, 40 * (exact(np.abs(a), np.abs(b)) + np.abs(before)))
        got = batched_gemm(cp.asarray(a)[None], cp.asarray(b)[None])
        check(got, exact(a, b)[None], BFLOAT16, 40 * exact(np.abs(a), np.abs(b)))
    assert len(said) == 1
    with pytest.raises(ValueError, match="needs cuBLASLt"):
        gemm(cp.asarray(a), cp.asarray(b), gelu="forward", aux=cp.empty((9, 8), dtype=BFLOAT16)[:, :7])


def test_the_library_is_found_by_name_or_by_nvidias_search(monkeypatch):
    fake_cublaslt.compiled()
    real, tried = ctypes.CDLL, []

    def load(path, mode):
        tried.append((path, bool(mode & os.RTLD_NOLOAD)))
        if path != "libcublasLt.so.12" or mode & os.RTLD_NOLOAD:
            raise OSError(f"{path}: cannot open shared object file")
        return real(fake_cublaslt.compiled()._name)

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert cublaslt.load_library.__wrapped__().cublasLtGetVersion() == 130102
    assert tried[:2] == [("libcublasLt.so.13", True), ("libcublasLt.so.12", True)]
    assert tried[-2:] == [("libcublasLt.so.13", False), ("libcublasLt.so.12", False)]
    monkeypatch.setattr(ctypes, "CDLL", lambda path, mode: ctypes.PyDLL(None))  # a library without these calls
    assert cublaslt.load_library.__wrapped__() is None


# -- NVIDIA's headers --------------------------------------------------------------------------------------------------


def include_folders():
    """Folders of headers, as arguments of a compiler; skips the test if cublasLt.h or what it includes is missing."""
    given = os.environ.get("TINYGRAD2_CUBLAS_INCLUDE", "").split(os.pathsep)
    patterns = [f"{sysconfig.get_path('purelib')}/nvidia/*/include", "/usr/local/cuda*/include"]
    folders = [folder for folder in [*given, *itertools.chain.from_iterable(map(glob.glob, patterns))] if folder]
    for header in ("cublasLt.h", "cublas_api.h", "library_types.h", "driver_types.h", "cuda_fp16.h"):
        if not any(os.path.exists(os.path.join(folder, header)) for folder in folders):
            pytest.skip(f"no {header} here: install nvidia-cublas and nvidia-cuda-runtime, or name the folders in "
                        "TINYGRAD2_CUBLAS_INCLUDE")  # fmt: skip
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to compile what reads the headers")
    return [f"-I{folder}" for folder in folders]


def header_constants():
    """What cublaslt.py uses: {name in the headers: value}."""
    named = {"CUBLAS_STATUS_SUCCESS": cublaslt.SUCCESS, "CUBLAS_STATUS_NOT_SUPPORTED": cublaslt.NOT_SUPPORTED}
    types = {"float32": "CUDA_R_32F", "float16": "CUDA_R_16F", "bfloat16": "CUDA_R_16BF"}
    named |= {types[dtype]: value for dtype, value in cublaslt.DATA_TYPES.items()}
    named |= {f"CUBLAS_OP_{'NT'[transposed]}": value for transposed, value in cublaslt.OPERATIONS.items()}
    prefixes = {
        "CUBLAS_COMPUTE_": cublaslt.COMPUTE_TYPES,
        "CUBLASLT_EPILOGUE_": cublaslt.EPILOGUES,
        "CUBLASLT_REDUCTION_SCHEME_": cublaslt.REDUCTIONS,
        **{prefix: {name: number for name, (number, _) in table.items()} for prefix, table in ATTRIBUTES.items()},
    }
    return named | {prefix + name: value for prefix, table in prefixes.items() for name, value in table.items()}


ATTRIBUTES = {
    "CUBLASLT_MATMUL_DESC_": cublaslt.OPERATION,
    "CUBLASLT_MATRIX_LAYOUT_": cublaslt.LAYOUT,
    "CUBLASLT_MATMUL_PREF_": cublaslt.PREFERENCE,
}
STRUCTURES = {
    "cublasLtMatmulAlgo_t": cublaslt.Algorithm,
    "cublasLtMatmulHeuristicResult_t": cublaslt.HeuristicResult,
}


def structure_layout():
    """{C expression: value in ctypes} of sizes and offsets."""
    values = {"sizeof(cublasStatus_t)": 4}                        # what c_int stands for, besides int
    values |= {f"sizeof({name})": 4 for name in ("cublasComputeType_t", "cudaDataType_t", "cudaDataType")}
    for name, structure in STRUCTURES.items():
        values[f"sizeof({name})"] = ctypes.sizeof(structure)
        for field, _ in structure._fields_:
            values[f"offsetof({name}, {field})"] = getattr(structure, field).offset
            values[f"sizeof((({name} *)0)->{field})"] = getattr(structure, field).size
    return values


def test_every_value_and_structure_is_that_of_the_headers(tmp_path):
    folders, expected = include_folders(), header_constants() | structure_layout()
    lines = "".join(f'printf("%lld\\n", (long long)({expression}));\n' for expression in expected)
    program = f"#include <stddef.h>\n#include <stdio.h>\n#include <cublasLt.h>\nint main() {{\n{lines}return 0;\n}}\n"
    (tmp_path / "print.c").write_text(program, encoding="utf-8")
    subprocess.run(["gcc", *folders, "-o", "print", "print.c"], cwd=tmp_path, check=True, timeout=120)
    printed = subprocess.run([tmp_path / "print"], capture_output=True, text=True, check=True, timeout=60).stdout
    found = dict(zip(expected, map(int, printed.split()), strict=True))
    assert found == expected


def header_text():
    for folder in include_folders():
        path = os.path.join(folder[2:], "cublasLt.h")
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                return file.read()
    raise AssertionError("include_folders() has found it")


def test_attributes_have_the_types_of_the_headers_comments():
    """Each attribute is preceded by a comment that ends with its type: `int64_t, default: 0`."""
    text = header_text()
    kinds = {f"{sign}int{bits}_t": getattr(ctypes, f"c_{sign}int{bits}") for sign in ("", "u") for bits in (32, 64)}
    for prefix, table in ATTRIBUTES.items():
        for name, (number, kind) in table.items():
            comment = re.search(rf"/\*\*((?:(?!/\*\*).)*?)\*/\s*{prefix}{name} = {number},", text, re.DOTALL).group(1)
            types = re.findall(r"^ +\* +(?:\w+ \w+: )?(u?int\d+_t|(?:const )?void \*)[^.]*$", comment, re.MULTILINE)
            expected = ctypes.c_void_p if "void" in types[-1] else kinds[types[-1]]
            assert kind is expected, (name, types)


def test_calls_have_the_arguments_of_the_headers_prototypes():
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", header_text(), flags=re.DOTALL)
    plain = {"int": ctypes.c_int, "size_t": ctypes.c_size_t, "uint64_t": ctypes.c_uint64, "int64_t": ctypes.c_int64}
    for name, types in cublaslt.CALLS.items():
        (arguments,) = re.findall(rf"cublasStatus_t CUBLASWINAPI {name}\(([^)]*)\)", text)
        arguments = [" ".join(argument.split()) for argument in arguments.split(",")]
        assert len(arguments) == len(types), name
        for argument, kind in zip(arguments, types):
            declared = re.sub(r" ?\w+(\[\])?$", "", argument)
            if declared in plain:
                assert kind is plain[declared], (name, argument)
            elif re.search(r"(Attributes?|Type|DataType)_t$|^cudaDataType$", declared):
                assert kind is ctypes.c_int, (name, argument)      # an enum
            else:
                assert "*" in argument or "[]" in argument or declared.endswith("_t"), (name, argument)
                assert ctypes.sizeof(kind) == ctypes.sizeof(ctypes.c_void_p) and kind is not ctypes.c_size_t


def test_the_stand_in_agrees_with_the_headers():
    """Its functions have the headers' prototypes, and its numbers the headers' values: the compiler checks both."""
    command = ["gcc", "-fsyntax-only", "-DCUBLASLT_HEADER", *include_folders(), str(fake_cublaslt.SOURCE)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


# -- NVIDIA's library, without a GPU -----------------------------------------------------------------------------------


def real_library():
    """libcublasLt where it is installed, or near the folders of TINYGRAD2_CUBLAS_INCLUDE; else the test is skipped."""
    for folder in os.environ.get("TINYGRAD2_CUBLAS_INCLUDE", "").split(os.pathsep):
        for path in glob.glob(os.path.join(folder, "..", "lib", "libcublasLt.so.*")):
            return cublaslt.declared(ctypes.CDLL(path))
    return cublaslt.load_library() or pytest.skip("no libcublasLt here")


@pytest.mark.parametrize("dtype, result", PAIRS, ids=str)
def test_the_real_library_takes_every_descriptor_and_attribute(cp, monkeypatch, dtype, result):
    """Only the choice of an algorithm needs a GPU."""
    fake_cublaslt.install(monkeypatch, real_library)
    monkeypatch.setattr(cublaslt_plan.Plan, "answers", lambda self, wanted: [self._preference_of(self.problem)])
    matrices = [cublaslt_problem.matrix_of(cp.zeros((2, 8, 16), dtype=d)) for d in (dtype, dtype, result)]
    for epilogue, precision in itertools.product(cublaslt.EPILOGUES, cublaslt.COMPUTE_TYPES):
        wants = "BIAS" in epilogue, "GELU" in epilogue
        problem = cublaslt_problem.Problem(*matrices, 2, precision, epilogue, 16 * wants[0], 16 * wants[1], 16, 0)
        assert cublaslt_plan.Plan(problem)._handles
    with pytest.raises(cublaslt.CublasError, match="CUBLAS_STATUS_INVALID_VALUE"):
        monkeypatch.setitem(cublaslt_plan.OPERATION, "TRANSA", (3, ctypes.c_int64))
        cublaslt_plan.Plan(problem)
