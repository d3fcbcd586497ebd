"""Functions that CUDA kernels share, and what kernels do beyond the samples of an op: huge values, memory in place."""

import cuda_checks
import numpy as np
import pytest
import strict_cupy
from cuda_host import needs_compiler, running
from kernel_checks import error

from ops.gelu import GELU
from ops.gelu_erf import GELUErf
from ops.kernels.cuda.column_sums import bias_gradient
from ops.kernels.cuda.gelu import gelu, gelu_gradient
from tinygrad2.halves import half_dtype

pytestmark = needs_compiler
pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: bfloat16 on a GPU needs it")


@pytest.fixture
def cupy(monkeypatch):
    return strict_cupy.install(monkeypatch)


def array_dtype(name):
    return np.dtype(np.float32) if name == "float32" else half_dtype(name)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# -- sums of columns ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", cuda_checks.DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 8), (33, 264), (200, 33), (1, 512), (2100, 8), (0, 5)])
def test_a_bias_gradient_is_the_sum_of_the_rows(shape, dtype, reverse, cupy):
    rows = normal(*shape).astype(array_dtype(dtype))
    with running(reverse=reverse) as launches, strict_cupy.no_sync():
        gradient = bias_gradient(cupy, cupy.asarray(rows))
        written = gradient.copy()
        added = cupy.asarray(np.ones(shape[1], np.float32))
        gradient.write_to(added, accumulate=True)
    exact = rows.astype(np.float64).sum(0)
    assert launches == ["sum_blocks_of_rows", "sum_rows", "sum_rows"]
    assert gradient.shape == shape[1:] and gradient.dtype == written.dtype == np.float32
    assert error(written.get(), exact) < 1e-6 and error(added.get(), exact + 1) < 1e-6


def test_rows_of_a_bias_gradient_are_divided_by_the_shape_alone(cupy):
    """Many rows: several blocks, which the second kernel adds; and the same bits in both orders."""
    rows = cupy.asarray(normal(300, 2304))
    sums = []
    for reverse in (False, True):
        with running(reverse=reverse, check=False):
            sums.append(bias_gradient(cupy, rows).copy().get())
    assert np.array_equal(*sums) and error(sums[0], rows.get().astype(np.float64).sum(0)) < 1e-6


# -- GELU --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("dtype", cuda_checks.DTYPES)
def test_gelu_in_place_is_gelu(exact, dtype, cupy):
    """As mlp calls it: gelu(h) over h, and dh over dg, in one pass."""
    h, dg = (normal(7, 43, seed=seed).astype(array_dtype(dtype)) for seed in (0, 1))
    node = (GELUErf if exact else GELU)(np, [True])
    exact_g = node.forward(h.astype(np.float64))
    (exact_dh,) = node.backward(dg.astype(np.float64))
    with running() as launches:
        g = gelu(cupy, cupy.asarray(h), exact)
        memory, dh = cupy.asarray(h), cupy.asarray(dg)
        assert gelu_gradient(cupy, memory, dh, exact, dx=dh, out=memory) is dh
    assert launches == ["gelu_forward", "gelu_backward"] and np.array_equal(g.get(), memory.get())
    for got, expected in ((g, exact_g), (dh, exact_dh)):
        assert error(cuda_checks.host(got), expected) <= cuda_checks.TOLERANCE[dtype]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("dtype", cuda_checks.DTYPES)
def test_gelu_of_huge_values(exact, dtype, cupy):
    """Far out it is x or 0, with a slope of 1 or 0, and no power overflows; NaN stays NaN."""
    dtype = array_dtype(dtype)
    largest = 6e4 if dtype == np.float16 else 3e38
    x = np.array([largest, 1e4, 200.0, 12.5, -12.5, -200.0, -1e4, -largest, np.nan], np.float32).astype(dtype)
    with running():
        out = cuda_checks.host(gelu(cupy, cupy.asarray(x), exact))
        slope = cuda_checks.host(gelu_gradient(cupy, cupy.asarray(x), cupy.asarray(np.ones(9, dtype)), exact))
    assert np.array_equal(out[:4], x[:4].astype(np.float64)) and np.abs(out[4:8]).max() < 1e-19
    assert np.array_equal(slope[:4], np.ones(4)) and np.abs(slope[4:8]).max() < 1e-18
    assert np.isnan(out[8]) and np.isnan(slope[8])


def test_nothing_is_launched_for_an_empty_array(cupy):
    with running() as launches:
        empty = gelu(cupy, cupy.asarray(normal(0, 5)))
    assert empty.shape == (0, 5) and not launches
