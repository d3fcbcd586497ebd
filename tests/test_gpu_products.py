"""Matrix products through the real cuBLASLt, if CuPy finds a GPU: the same checks as on the stand-in, the shapes of a
GPT, the same bits in every run, a CUDA graph, and a second opinion, nvmath-python's, where it is installed."""

import itertools

import numpy as np
import product_checks
import pytest
from gpu_works import a_gpu_that_works  # noqa: F401
from product_checks import (
    BFLOAT16,
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

from ops.kernels.cuda import cublaslt, mlp
from ops.kernels.cuda.products import batched_gemm, gemm
from tinygrad2.gpu.choices import GELU, Choices, choosing
from tinygrad2.precision import matmul_precision

cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
if not cupy.cuda.is_available():
    pytest.skip("CuPy finds no GPU here", allow_module_level=True)

GPT = [(4096, 768, 2304), (4096, 768, 768), (4096, 3072, 768), (4096, 768, 3072), (4096, 768, 50257)]  # M, K, N


@pytest.fixture(autouse=True)
def of_this_gpu(monkeypatch, request):
    monkeypatch.setattr(product_checks, "roundings", 64)          # in tensor cores
    if "dtype" in request.fixturenames and not has_type(request.getfixturevalue("dtype")):
        pytest.skip("this GPU has no products of bfloat16")


def has_type(dtype):
    return dtype != BFLOAT16 or int(cupy.cuda.Device().compute_capability) >= 80


def test_the_library_is_loaded():
    assert cublaslt.load_library() is not None


def test_all_kinds_of_products():
    all_kinds_of_products(cupy, [pair for pair in PAIRS if has_type(pair[0])])


@pytest.mark.parametrize("dtype, result", PAIRS, ids=str)
@pytest.mark.parametrize("layout_a, layout_b", list(itertools.product(LAYOUTS, LAYOUTS)))
def test_a_product_of_matrices_however_they_lie(layout_a, layout_b, dtype, result):
    for M, K, N in SHAPES:
        a, b, before = numbers((M, K), dtype), numbers((K, N), dtype, 1), numbers((M, N), result, 2)
        operands = laid_out(cupy, a, layout_a), laid_out(cupy, b, layout_b)
        size = exact(np.abs(a), np.abs(b)) + np.abs(before.astype(np.float64))
        check(gemm(*operands, dtype=result), exact(a, b), result, size)
        out = cupy.asarray(before)
        gemm(*operands, out, accumulate=True)
        check(out, exact(a, b) + before.astype(np.float64), result, size)


@pytest.mark.parametrize("dtype, result", PAIRS, ids=str)
@pytest.mark.parametrize("M, K, N", GPT)
def test_products_of_a_gpt(M, K, N, dtype, result):
    rng = cupy.random.default_rng(0)
    a, b = (rng.standard_normal(shape, dtype=np.float32).astype(dtype) for shape in ((M, K), (K, N)))
    bias = rng.standard_normal(N, dtype=np.float32).astype(result)
    got = gemm(a, b, bias=bias, dtype=result).astype(np.float32)
    rows = slice(0, None, 97)
    right = a[rows].astype(np.float64) @ b.astype(np.float64) + bias.astype(np.float64)
    size = cupy.abs(a[rows].astype(np.float64)) @ cupy.abs(b.astype(np.float64))
    allowed = 1.01 * product_checks.EPS[result] * cupy.abs(right) + 64 * product_checks.EPS[FLOAT32] * size
    assert bool((cupy.abs(got[rows] - right) <= allowed).all())
    again = gemm(a, b, bias=bias, dtype=result).astype(np.float32)
    assert bool((again == got).all())                             # the same bits
    weight = cupy.ones((K, N), np.float32)
    gemm(a.T, got.astype(dtype), weight, accumulate=True)
    right = 1 + a.T.astype(np.float64) @ got[:, :64].astype(dtype).astype(np.float64)
    assert float(cupy.abs(weight[:, :64] - right).max() / cupy.abs(right).max()) < 1e-5


@pytest.mark.parametrize("dtype, result", PAIRS, ids=str)
def test_batches(dtype, result):
    for shape_a, shape_b in (((3, 2, 17, 65), (3, 2, 65, 9)), ((4, 64, 33), (33, 8)), ((5, 1, 8, 8), (3, 8, 16))):
        a, b = numbers(shape_a, dtype), numbers(shape_b, dtype, 1)
        got = batched_gemm(cupy.asarray(a), cupy.asarray(b), dtype=result)
        check(got, exact(a, b), result, exact(np.abs(a), np.abs(b)))


def test_tf32_has_the_errors_of_11_bits():
    a, b = numbers((256, 512), FLOAT32), numbers((512, 384), FLOAT32, 1)
    right = exact(a, b)
    errors = {}
    for precision in ("highest", "high"):
        got = gemm(cupy.asarray(a), cupy.asarray(b), precision=precision).get()
        errors[precision] = np.abs(got - right).max() / np.abs(right).max()
    assert errors["highest"] < 1e-6 and errors["high"] < 1e-3
    if int(cupy.cuda.Device().compute_capability) >= 80:
        assert errors["high"] > 1e-5                              # it is used


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
def test_gelu_inside_products(dtype):
    a, b, bias = (numbers(shape, dtype, i) for i, shape in enumerate([(128, 96), (96, 256), (256,)]))
    aux = cupy.empty((128, 256), dtype)
    got = gemm(cupy.asarray(a), cupy.asarray(b), bias=cupy.asarray(bias), gelu="forward", aux=aux)
    h = exact(a, b) + bias.astype(np.float64)
    check(aux, h, dtype, exact(np.abs(a), np.abs(b)))
    right = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    assert np.abs(got.get().astype(np.float64) - right).max() <= 2 * product_checks.EPS[dtype] * np.abs(right).max()


@pytest.mark.parametrize("M, K, N", GPT[:4])
def test_measured_algorithms_compute_the_same_and_are_believed_again(M, K, N, recwarn):
    dtype = BFLOAT16 if has_type(BFLOAT16) else FLOAT16
    a, b = (cupy.asarray(numbers(shape, dtype)) for shape in ((M, K), (K, N)))
    first, found, sums = gemm(a, b, dtype=np.float32), Choices(measures=True), []
    with choosing(found):
        tuned = gemm(a, b, dtype=np.float32)
        for made in (found, Choices(found.made)):                 # measured; then from its 64 bytes
            with choosing(made):
                out = cupy.ones((M, N), np.float32)
                gemm(a, b, out, accumulate=True)
                sums.append(out)
    refused = [warning for warning in recwarn.list if "stored algorithm" in str(warning.message)]
    assert len(found.made) == 1 and not refused                   # the library takes its own algorithm back
    size = float(cupy.abs(first).max())
    assert float(cupy.abs(tuned - first).max()) <= 1e-4 * size and bool((sums[0] == sums[1]).all())
    assert float(cupy.abs(sums[0] - first - 1).max()) <= 1e-4 * size              # added once


def test_gelu_is_measured_inside_and_outside_of_products():
    name = "bfloat16" if has_type(BFLOAT16) else "float16"
    found = Choices(measures=True)
    shapes = (4096, 768), (768, 3072), (3072,), (3072, 768), (768,)
    arrays = [cupy.asarray(numbers(shape, FLOAT32) / np.float32(10)) for shape in shapes]
    results = []
    with matmul_precision(name):
        for made in (Choices(), found):
            with choosing(made):
                node = mlp.MLPCUDA(cupy, (True,) * 5)
                out = node.forward(*arrays)
                results.append([out, *node.backward(cupy.ones_like(out))])
    ways = [choice for key, choice in found.made.items() if key.startswith(GELU)]
    print("GELU forward and backward:", ways)
    assert len(ways) == 2
    for one, other in zip(*results):
        one, other = ((g.copy() if hasattr(g, "write_to") else g).astype(np.float32) for g in (one, other))
        assert float(cupy.abs(one - other).max()) <= 0.02 * float(cupy.abs(one).max())


def test_products_in_a_cuda_graph():
    a, b = (cupy.asarray(numbers(shape, BFLOAT16 if has_type(BFLOAT16) else FLOAT16)) for shape in ((64, 64), (64, 64)))
    out = cupy.zeros((64, 64), np.float32)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        gemm(a, b, out)                                           # the plan and the workspace exist before
        once = out.get()
        stream.begin_capture()
        gemm(a, b, out, accumulate=True)
        graph = stream.end_capture()
        graph.launch(stream)
        graph.launch(stream)
        assert np.allclose(out.get(), 3 * once, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16, BFLOAT16], ids=str)
def test_nvmath_python_agrees(dtype):
    advanced = pytest.importorskip("nvmath.linalg.advanced", reason="nvmath-python is not installed")
    a, b = (cupy.asarray(numbers(shape, dtype)) for shape in ((256, 128), (128, 512)))
    one, other = gemm(a, b).astype(np.float32), advanced.matmul(a, b).astype(np.float32)
    assert float(cupy.abs(one - other).max()) <= 2 * product_checks.EPS[dtype] * float(cupy.abs(other).max())
