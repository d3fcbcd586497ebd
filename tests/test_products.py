"""Matrix products have the same bits for any number of threads, and wherever their arrays are in memory."""

import numpy as np
import pytest

import ops

if not ops.have_cpu_kernels():
    pytest.skip("Numba is not installed", allow_module_level=True)

from ops.kernels.cpu import blas_gemm, skinny_gemm
from ops.kernels.cpu.blas_library import _openblas, find
from ops.kernels.cpu.blas_threads import ThreadSwitch
from ops.kernels.cpu.linear import product
from tinygrad2.system.threads import POOL

if not blas_gemm.available:
    pytest.skip("no BLAS library can be called directly here", allow_module_level=True)

# rows of a micro-batch, in, out: those of the demo, the baby, GPT-2 (its head in part), and odd ones
LAYERS = [(512, 128, 384), (2048, 128, 512), (256, 128, 1024), (1536, 384, 1152), (256, 768, 3072), (256, 768, 5003),
          (192, 100, 100), (37, 128, 384), (37, 512, 128), (130, 36, 1000), (33, 33, 33), (1, 64, 64),
          (40, 40000, 40)]  # fmt: skip


def products(rows, inner, outer):
    """(a, b) of the three products of a linear layer: forward, and the gradients of its input and of its weight."""
    rng = np.random.default_rng(0)
    x, weight, dout = (rng.standard_normal(shape, dtype=np.float32)
                       for shape in ((rows, inner), (inner, outer), (rows, outer)))  # fmt: skip
    return (x, weight), (dout, weight.T), (x.T, dout)


@pytest.fixture(params=["preferred", "OpenBLAS"])
def library(request, monkeypatch):
    """The library that is used here, and OpenBLAS where that is another."""
    if request.param == "OpenBLAS":
        if find()[2] == "OpenBLAS" or not _openblas():
            pytest.skip("there is no second library here")
        sgemm, set_threads, _ = _openblas()
        sgemm.argtypes, sgemm.restype = blas_gemm._sgemm.argtypes, None
        monkeypatch.setattr(blas_gemm, "_sgemm", sgemm)
        monkeypatch.setattr(blas_gemm, "_set_threads", set_threads)
        switch = ThreadSwitch(set_threads)
        monkeypatch.setattr(blas_gemm, "ONE_THREAD", switch.one)
        monkeypatch.setattr(blas_gemm, "ALL_THREADS", switch.all)
    before = POOL.threads
    yield
    POOL.resize(before)
    blas_gemm._set_threads(before or 1)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_bits_do_not_depend_on_the_threads(library, layer):
    for a, b in products(*layer):
        start = np.random.default_rng(1).standard_normal((len(a), b.shape[1]), dtype=np.float32)
        for add in (False, True):
            results = []
            for threads in (1, 2, 3, 4):
                POOL.resize(threads)
                blas_gemm._set_threads(threads)
                results.append(blas_gemm.gemm(a, b, start.copy(), add).tobytes())
            assert len(set(results)) == 1
            exact = a.astype(np.float64) @ b.astype(np.float64) + add * start
            assert np.allclose(np.frombuffer(results[0], np.float32).reshape(start.shape), exact, rtol=1e-4, atol=1e-3)


def placed(array, offset):
    """A copy that begins `offset` bytes after a line of the cache."""
    memory = np.empty(array.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    copy = memory[start : start + array.nbytes].view(np.float32).reshape(array.shape)
    copy[...] = array
    return copy


@pytest.mark.parametrize("layer", LAYERS[:2] + LAYERS[6:9], ids=str)
def test_bits_do_not_depend_on_the_address(library, layer):
    for a, b in products(*layer):
        results = set()
        for offset in (0, 16, 32, 48, 4):
            one = placed(a, offset) if a.flags.c_contiguous else placed(a.T, offset).T
            other = placed(b, 48 - offset) if b.flags.c_contiguous else placed(b.T, 48 - offset).T
            out = placed(np.zeros((len(a), b.shape[1]), np.float32), offset)
            results.add(blas_gemm.gemm(one, other, out).tobytes())
        assert len(results) == 1


# -- few rows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_out", [1, 7, 384, 385, 768, 3000])
@pytest.mark.parametrize("n_in", [1, 8, 13, 768])
def test_few_rows_are_multiplied_by_loops_of_their_own(n_in, n_out):
    rng, before = np.random.default_rng(0), POOL.threads
    weight = rng.standard_normal((n_in, n_out), dtype=np.float32)
    bias = rng.standard_normal(n_out, dtype=np.float32)
    for n in range(1, skinny_gemm.MOST + 1):
        rows = rng.standard_normal((n, n_in), dtype=np.float32)
        exact = rows.astype(np.float64) @ weight
        for layout in (weight, np.ascontiguousarray(weight.T).T):
            assert skinny_gemm.fits(rows, layout)
            results = set()
            for threads in (1, 2, 3):
                POOL.resize(threads)
                results.add(product(rows, layout, bias).tobytes())
            assert len(results) == 1
            with_bias = np.frombuffer(results.pop(), np.float32).reshape(exact.shape)
            assert np.allclose(with_bias, exact + bias, rtol=1e-5, atol=2e-4)
            assert np.allclose(product(rows, layout), exact, rtol=1e-5, atol=2e-4)
    POOL.resize(before)


def test_other_products_are_left_to_blas():
    weight = np.ones((40, 60), np.float32)
    for rows, other in ((skinny_gemm.MOST + 1, weight), (3, weight[:, ::2]), (3, weight[::2].T)):
        assert not skinny_gemm.fits(np.ones((rows, len(other)), np.float32), other)


def test_nan_and_infinity_come_through_few_rows():
    weight = np.ones((16, 400), np.float32)
    weight[3, 5], weight[4, 399] = np.nan, np.inf
    for layout in (weight, np.ascontiguousarray(weight.T).T):
        out = product(np.ones((3, 16), np.float32), layout)
        assert np.isnan(out[:, 5]).all() and np.isinf(out[:, 399]).all() and np.isfinite(out).sum() == 3 * 398
