"""Functions that CUDA kernels share, and what kernels do beyond the samples of an op: huge values, memory in place."""

import cuda_checks
import fake_cublaslt
import numpy as np
import pytest
import strict_cupy
from cuda_host import needs_compiler, running
from kernel_checks import error
from samples import Sample

import ops
from ops.cross_entropy import CrossEntropy
from ops.dropout import keep_mask
from ops.gelu import GELU
from ops.gelu_erf import GELUErf
from ops.kernels.cuda import layernorm, linear_cross_entropy
from ops.kernels.cuda.column_sums import bias_gradient
from ops.kernels.cuda.cross_entropy import CrossEntropyCUDA
from ops.kernels.cuda.dropout import DropoutCUDA
from ops.kernels.cuda.embedding import EmbeddingCUDA
from ops.kernels.cuda.gelu import gelu, gelu_gradient
from ops.kernels.cuda.linear_cross_entropy import LinearCrossEntropyCUDA
from ops.kernels.cuda.sorted_ids import sorted_keys
from ops.linear_cross_entropy import LinearCrossEntropy
from tinygrad2 import Tensor
from tinygrad2.dispatch import KERNELS, OPS
from tinygrad2.halves import half_dtype, half_of
from tinygrad2.module import Parameter
from tinygrad2.prng import make_key, uniform

pytestmark = needs_compiler
pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: bfloat16 on a GPU needs it")


@pytest.fixture
def cupy(monkeypatch):
    cupy = strict_cupy.install(monkeypatch)
    fake_cublaslt.install(monkeypatch)
    return cupy


def array_dtype(name):
    return np.dtype(np.float32) if name == "float32" else half_dtype(name)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# -- sums of columns ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", cuda_checks.DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 8), (33, 264), (200, 33), (1, 512), (2100, 8), (0, 5), (3, 0)])
def test_a_bias_gradient_is_the_sum_of_the_rows(shape, dtype, reverse, cupy):
    rows = normal(*shape).astype(array_dtype(dtype))
    with running(reverse=reverse) as launches, strict_cupy.no_sync():
        gradient = bias_gradient(cupy, cupy.asarray(rows))
        written = gradient.copy()
        added = cupy.asarray(np.ones(shape[1], np.float32))
        gradient.write_to(added, accumulate=True)
    exact = rows.astype(np.float64).sum(0)
    assert launches == (["sum_blocks_of_rows", "sum_rows", "sum_rows"] if shape[1] else [])
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


# -- layernorm ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", cuda_checks.DTYPES)
@pytest.mark.parametrize("rows, C", [(19, 24), (37, 33)])
def test_a_block_of_layernorm_takes_rows_in_several_rounds(rows, C, dtype, cupy, monkeypatch):
    """As 528 blocks do with 65,536 rows: here two blocks of four warps, and the last round is not full."""
    monkeypatch.setattr(layernorm, "_BLOCKS", 2)
    for name, shapes in (("layernorm", [(rows, C)]), ("add_layernorm", [(rows, C), (rows, C)])):
        (kernel,) = KERNELS[name, "cupy"]
        assert cuda_checks.check_kernel(kernel, OPS[name], cupy, Sample((*shapes, (C,), (C,))), dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gradient_of_layernorm_goes_to_any_array(dtype, cupy):
    """To one whose address is no multiple of 16 bytes, and to one with gaps; and it is added to what is there."""
    (kernel,) = KERNELS["layernorm", "cupy"]
    shifted, gaps = cupy.zeros(73, np.float32)[1:].reshape(3, 24), cupy.zeros((3, 48), np.float32)[:, ::2]
    assert shifted.data.ptr % 16 and not gaps.flags.c_contiguous
    with cuda_checks.in_precision(dtype), running():
        node = kernel(cupy, [True] * 2)
        out = node.forward(cupy.asarray(normal(3, 24)), cupy.asarray(normal(24, seed=1)))
        gradient = node.backward(cupy.asarray(normal(3, 24, seed=2).astype(out.dtype)))[0]
        expected = gradient.copy().get()
        for place in (shifted, gaps):
            place.fill(7)
            gradient.write_to(place, accumulate=False)
            assert error(place.get(), expected) < 1e-6
            place.fill(1)
            assert error(gradient.plus(place).get(), expected + 1) < 1e-6
            gradient.write_to(place, accumulate=True)
            assert error(place.get(), expected + 1) < 1e-6


@pytest.mark.parametrize("C", [24, 33, 1101])
def test_a_mean_far_from_zero_costs_no_digits(C, cupy):
    """Squares are those of what is left without the mean: differences of squares would have lost most digits."""
    x, weight = normal(5, C) + np.float32(1000), np.ones(C, np.float32)
    (kernel,) = KERNELS["layernorm", "cupy"]
    with running():
        out = kernel(cupy, [True] * 2).forward(cupy.asarray(x), cupy.asarray(weight)).get()
    exact = OPS["layernorm"](np, [True] * 2).forward(x.astype(np.float64), weight.astype(np.float64))
    assert error(out, exact) < 1e-4


# -- what does not fit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op, shapes", [
    ("layernorm", [(3, 8), (7,), (8,)]), ("layernorm", [(3, 8), (9,), (8,)]), ("layernorm", [(3, 8), (1,), (8,)]),
    ("layernorm", [(3, 8), (8,), (1,)]), ("layernorm", [(3, 8), (1, 8)]),
    ("add_layernorm", [(3, 8), (3, 8), (8,), (4,)]),
    ("add_layernorm", [(3, 8), (1, 8), (8,)]), ("linear_int8", [(3, 8), (5, 9), (5,)]),
    ("linear_int8", [(3, 8), (5, 8), (4,)]), ("linear_int8", [(3, 8), (5, 8), (5,), (1,)]),
    ("linear_bfloat16", [(3, 8), (5, 16)]), ("linear_bfloat16", [(3, 8), (5, 8), (6,)]),
    ("add", [(3, 8), (3, 4)]), ("add", [(3, 8), (16, 3, 8)]), ("mul", [(3, 8), (8,)]),
    ("cross_entropy", [(3, 8), (4,)]), ("linear_cross_entropy", [(3, 8), (5, 9), (3,)]),
    ("linear_cross_entropy", [(3, 8), (5, 8), (2,)]), ("attention", [(3, 8), (4, 8), (4, 9)]),
])  # fmt: skip
def test_shapes_that_do_not_fit_are_left_to_the_reference(op, shapes, cupy):
    """It broadcasts them, or says what is wrong; a kernel would read beyond their ends."""
    dtypes = {"linear_int8": np.int8, "linear_bfloat16": np.uint16}
    arrays = [cupy.zeros(shape, dtypes.get(op, np.float32) if i == 1 else np.float32) for i, shape in enumerate(shapes)]
    assert not any(kernel.supports(*arrays) for kernel in KERNELS[op, "cupy"])


def test_sums_of_very_many_rows_are_left_to_the_reference(cupy):
    """The kernels count rows by 32 bits."""
    a, b = cupy.zeros((), np.float32), cupy.zeros((), np.float32)
    (kernel,) = KERNELS["add", "cupy"]
    assert kernel.supports(cupy.broadcast_to(a, (2**31 - 1,)), b)
    assert not kernel.supports(cupy.broadcast_to(a, (2**31,)), b)


# -- rows that are no numbers, and no rows -----------------------------------------------------------------------------


@pytest.mark.parametrize("C", [24, 300, 1101])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "layernorm", "add_layernorm"])
def test_a_row_that_is_no_number_spoils_no_other(name, C, cupy):
    """NaN and infinities, at the start, in the middle and at the end of a row, are where the reference has them."""
    (kernel,) = KERNELS[name, "cupy"]
    x, delta, weight = normal(9, C), normal(9, C, seed=1), normal(C, seed=2)
    for row, (column, value) in enumerate([(0, np.nan), (C // 2, np.nan), (C - 1, np.inf), (C // 3, -np.inf)]):
        x[2 * row + 1, column] = value
    given = {"layernorm": (x, weight, weight), "add_layernorm": (x, delta, weight, weight)}.get(name, (x,))
    with running(), np.errstate(all="ignore"):
        found = []
        for cls, xp in ((kernel, cupy), (OPS[name], np)):
            node = cls(xp, [True] * len(given))
            out = node.forward(*map(xp.asarray, given))
            several = isinstance(out, tuple)
            gradients = node.backward((xp.asarray(x), xp.asarray(delta)) if several else xp.asarray(delta))
            results = [*(out if several else (out,)), *map(cuda_checks.settled, gradients)]
            found.append([r.get() if xp is cupy else r for r in results])
    for got, exact in zip(*found, strict=True):
        assert np.array_equal(np.isfinite(got), np.isfinite(exact))
        np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-5)


EMPTY = [("add", (0, 5), (0, 5)), ("add", (0, 5), (5,)), ("mul", (0, 5), (0, 5)), ("exp", (0,)), ("dropout", (0, 5)),
         ("gelu", (0, 5)), ("softmax", (0, 5)), ("log_softmax", (3, 0)), ("layernorm", (0, 5), (5,), (5,)),
         ("add_layernorm", (0, 5), (0, 5), (5,)), ("attention", (2, 0, 4), (2, 0, 4), (2, 0, 4)),
         ("attention", (0, 3, 4), (0, 3, 4), (0, 3, 4)), ("linear", (0, 5), (7, 5), (7,)), ("matmul", (0, 5), (5, 3)),
         ("split_heads", (0, 3, 24))]  # fmt: skip
NEED_ROWS = {"softmax", "log_softmax", "layernorm", "add_layernorm", "attention", "linear", "matmul"}


@pytest.mark.parametrize("name, shapes", [(name, shapes) for name, *shapes in EMPTY], ids=lambda value: str(value))
def test_of_no_rows_the_results_are_empty(name, shapes, cupy):
    """Or the kernel leaves them to the reference."""
    options = {"dropout": dict(p=0.5, key=1), "split_heads": dict(n_head=2)}.get(name, {})
    arrays = [normal(*shape) for shape in shapes]
    for kernel in KERNELS[name, "cupy"]:
        boxed = list(map(cupy.asarray, arrays))
        assert kernel.supports(*boxed) == (name not in NEED_ROWS)
        if name in NEED_ROWS:
            continue
        found = []
        for cls, xp, given in ((kernel, cupy, boxed), (OPS[name], np, arrays)):
            node = cls(xp, [True] * len(given))
            with running():
                out = node.forward(*given, **options)
                gradients = node.backward(out)
                results = [*(out if isinstance(out, tuple) else (out,)), *map(cuda_checks.settled, gradients)]
                found.append([r.get() if xp is cupy else r for r in results])
        for got, exact in zip(*found, strict=True):
            assert got.shape == exact.shape and np.array_equal(got, exact)


# -- casts and sums ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_casts_are_those_of_numpy(dtype, cupy):
    cuda_checks.check_casts(cupy, dtype)


def test_the_copy_of_a_weight_is_cast_by_the_kernel(cupy):
    owner = cupy.asarray(normal(5, 7))
    with running() as launches:
        copy = half_of(owner.T, half_dtype("bfloat16"))
    assert launches == ["cast_to_half"]
    assert np.array_equal(copy.get(), owner.get().T.astype(half_dtype("bfloat16")))


@pytest.mark.parametrize("shape", [(3, 17), (17,)])
@pytest.mark.parametrize("a, b", [("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")])
def test_sums_of_the_residual_stream_are_float32(a, b, shape, cupy):
    dtypes = array_dtype(a), array_dtype(b)
    arrays = [normal(*s, seed=seed).astype(d) for seed, (s, d) in enumerate(zip(((3, 17), shape), dtypes))]
    with cuda_checks.in_precision("bfloat16"), running() as launches:
        x, y = (Tensor(cupy.asarray(array), requires_grad=True) for array in arrays)
        out = ops.add(x, y)
        out.backward(cupy.asarray(normal(3, 17, seed=3)))
    assert ("add_halves" if a == b == "bfloat16" else "add") in launches[:2]
    assert np.array_equal(out.data.get(), arrays[0].astype(np.float32) + arrays[1].astype(np.float32))
    for leaf, dtype in ((x, dtypes[0]), (y, dtypes[1])):
        exact = normal(3, 17, seed=3)
        exact = exact if leaf.shape == (3, 17) else exact.sum(0)
        assert leaf.grad.dtype == dtype and np.array_equal(leaf.grad.get(), exact.astype(dtype))


# -- elementwise ops ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["exp", "log", "tanh", "sqrt", "relu", "sigmoid", "abs", "neg"])
def test_special_values_of_one_operand(op, cupy):
    """NaN, infinities, zeros and huge numbers give what NumPy gives, and the gradients the reference's."""
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 3e38, -3e38, 1e-40, 100.0, -100.0], np.float32)
    x = np.abs(x) if op in ("log", "sqrt") else x
    compare(op, cupy, x)


@pytest.mark.parametrize("op", ["sub", "mul", "div", "maximum", "minimum"])
def test_special_values_of_two_operands(op, cupy):
    values = np.array([np.nan, np.inf, -np.inf, 0.0, 1.0, -3e38, 2.0], np.float32)
    compare(op, cupy, *(np.ascontiguousarray(a).reshape(-1) for a in np.meshgrid(values, values)))


def compare(op, cupy, *arrays):
    """The kernel's result and gradients are those of the reference on NumPy, up to float32's rounding."""
    dout = np.ones(arrays[0].shape, np.float32)
    (kernel,) = KERNELS[op, "cupy"]
    nodes = [cls(xp, [True] * len(arrays)) for cls, xp in ((kernel, cupy), (OPS[op], np))]
    with running(), np.errstate(all="ignore"):
        got = nodes[0].forward(*map(cupy.asarray, arrays)), *nodes[0].backward(cupy.asarray(dout))
        expected = nodes[1].forward(*arrays), *nodes[1].backward(dout)
    for a, b in zip(got, expected):
        np.testing.assert_allclose(a.get(), b, rtol=2e-6)


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


# -- cross-entropy -----------------------------------------------------------------------------------------------------


def loss_and_gradient(logits, targets, cupy, dout=1.0, ignore_index=-1):
    """Of the kernel, in float64 on the host."""
    node = CrossEntropyCUDA(cupy, [True, False])
    with running(), strict_cupy.no_sync():
        loss = node.forward(cupy.asarray(logits), cupy.asarray(targets), ignore_index)
        gradient, _ = node.backward(cupy.asarray(np.float32(dout)[()].reshape(())))
    return float(loss), cuda_checks.host(gradient)


@pytest.mark.parametrize("dtype", cuda_checks.DTYPES)
def test_scores_of_minus_infinity_have_no_probability(dtype, cupy):
    logits = normal(3, 300).astype(array_dtype(dtype))
    logits[0, :290] = logits[1, 8:16] = -np.inf
    targets = np.array([295, 2, 7])
    node = CrossEntropy(np, [True, False])
    expected = node.forward(logits.astype(np.float64), targets)
    exact, _ = node.backward(np.float64(1))
    loss, gradient = loss_and_gradient(logits, targets, cupy)
    assert abs(loss - expected) < 1e-5 and error(gradient, exact) <= cuda_checks.TOLERANCE[dtype]
    assert not gradient[0, :290].any()


@pytest.mark.parametrize("bad", [-7, 300, 2**31, -(2**40)])
def test_a_target_outside_the_vocabulary_gives_nan(bad, cupy):
    loss, gradient = loss_and_gradient(normal(3, 300), np.array([5, bad, 7]), cupy)
    assert np.isnan(loss) and np.isnan(gradient[1]).all() and not np.isnan(gradient[[0, 2]]).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_seen(bad, cupy):
    logits = normal(3, 300)
    logits[1, 100] = bad
    loss, gradient = loss_and_gradient(logits, np.array([5, 6, 7]), cupy)
    assert np.isnan(loss) and np.isnan(gradient[1]).any() and not np.isnan(gradient[[0, 2]]).any()


def test_where_no_target_counts_the_loss_is_zero(cupy):
    loss, gradient = loss_and_gradient(normal(3, 20), np.full(3, 4, np.int32), cupy, ignore_index=4)
    assert loss == 0 and not gradient.any()


def test_float16_keeps_small_probabilities(cupy):
    """A thousand equally likely tokens in many rows: p / N would be 0 in float16, p times the loss scale / N is not."""
    rows, V, loss_scale = 512, 1000, 2.0**15
    logits = np.zeros((rows, V), np.float16)
    assert np.float16(1 / V / rows / 100) == 0
    _, gradient = loss_and_gradient(logits, np.zeros(rows, np.int64), cupy, loss_scale)
    assert error(gradient[:, 1:], np.full((rows, V - 1), loss_scale / V / rows)) < 2.0**-9


# -- dropout -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", cuda_checks.DTYPES)
@pytest.mark.parametrize("key, first", [(0, 0), (2**64 - 1, 2**63), (make_key(1, 2, 3), 10**12)])
def test_dropout_has_the_mask_of_the_reference(key, first, dtype, cupy):
    """Bit for bit, with p as float32, also where p is a number that is drawn, and the largest keys and positions."""
    for p in (0.0, 0.1, 0.3, 0.999, float(uniform(np, (), key, first + 5))):
        x = np.ones((1003,), array_dtype(dtype))
        mask = keep_mask(np, x.shape, p, key, first, np.float32)
        node = DropoutCUDA(cupy, [True])
        with running():
            out = node.forward(cupy.asarray(x), p, key, first)
            (dx,) = node.backward(cupy.asarray(x))
        assert np.array_equal(out.get(), mask.astype(x.dtype)) and np.array_equal(dx.get(), out.get())
        assert dtype != "float32" or p == 0 or 0 < np.count_nonzero(mask == 0) <= 1003


# -- embedding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids_dtype", [np.int32, np.int64])
def test_an_id_outside_the_table_gives_nan_and_no_gradient(ids_dtype, cupy):
    weight, ids = normal(7, 24), np.array([[3, -1, 3], [7, 0, 2**31 - 1]], ids_dtype)
    dout = normal(2, 3, 24, seed=1)
    node = EmbeddingCUDA(cupy, [True, False])
    with running(), strict_cupy.no_sync():
        out = node.forward(cupy.asarray(weight), cupy.asarray(ids))
        gradient = node.backward(cupy.asarray(dout))[0].copy()
    exact = np.zeros((7, 24))
    exact[3], exact[0] = dout[0, 0].astype(np.float64) + dout[0, 2], dout[1, 1]
    is_id = (ids >= 0) & (ids < 7)
    assert np.isnan(out.get()[~is_id]).all() and np.array_equal(out.get()[is_id], weight[ids[is_id]])
    assert error(gradient.get(), exact) < 1e-6


@pytest.mark.parametrize("n", [1, 7, 1023, 1024, 1025, 2048, 3000, 5200])
def test_positions_are_sorted_by_their_token(n, cupy):
    rng = np.random.default_rng(n)
    for below in (1, 3, 5000):
        ids = rng.integers(0, below, n)
        ids[rng.integers(0, n, 3)] = below, -1, 2**40
        exact = np.sort(np.where((ids >= 0) & (ids < below), ids, -1) * 2**32 + np.arange(n))
        for reverse in (False, True):
            with running(reverse=reverse), strict_cupy.no_sync():
                keys = sorted_keys(cupy, cupy.asarray(ids), below)
            assert np.array_equal(keys.get(), exact)


def test_a_row_is_the_sum_in_the_order_of_positions(cupy):
    """Bit for bit, also for an id with more positions than a block reads at a time."""
    ids, dout = np.where(np.arange(700) % 3 == 0, 1, 4), normal(700, 8)
    node = EmbeddingCUDA(cupy, [True, False])
    with running():
        node.forward(cupy.asarray(normal(5, 8)), cupy.asarray(ids))
        gradient = node.backward(cupy.asarray(dout))[0].copy().get()
    for token in (1, 4):
        total = np.zeros(8, np.float32)
        for row in dout[ids == token]:
            total += row
        assert np.array_equal(gradient[token], total)
    assert not gradient[[0, 2, 3]].any()


# -- linear and cross-entropy ------------------------------------------------------------------------------------------


@pytest.fixture
def small_chunks(monkeypatch):
    """Five rows of logits at a time."""
    monkeypatch.setattr(linear_cross_entropy, "GPU_LOGITS_CHUNK", 5 * 64 * 2)


def head(seed=0):
    x, weight = normal(17, 24, seed=seed), normal(57, 24, seed=seed + 1)
    return x, weight, np.random.default_rng(seed).integers(0, 57, 17)


def exact_head(x, weight, targets, dout):
    node = LinearCrossEntropy(np, [True, True, False])
    loss = node.forward(x.astype(np.float64), weight.astype(np.float64), targets)
    return loss, *node.backward(np.float64(dout))[:2]


@pytest.mark.parametrize("dtype", cuda_checks.DTYPES)
def test_chunks_of_logits_sum_to_the_same(dtype, small_chunks, cupy):
    x, weight, targets = head()
    x = x.astype(array_dtype(dtype))
    expected = exact_head(x, weight, targets, 0.5)
    node = LinearCrossEntropyCUDA(cupy, [True, True, False])
    node.precision = "highest" if dtype == "float32" else dtype
    with running() as launches, strict_cupy.no_sync():
        loss = node.forward(*map(cupy.asarray, (x, weight, targets)))
        dx, dweight, _ = node.backward(cupy.asarray(np.full((), 0.5, np.float32)))
        memory = dweight.copy()
    assert launches.count("softmax_loss") == (6 if dtype == "float32" else 4) and launches.count("mean_loss") == 1
    assert loss.dtype == memory.dtype == np.float32 and dx.dtype == x.dtype
    for got, exact in zip((loss, dx, memory), expected):
        assert error(cuda_checks.host(got), exact) <= cuda_checks.TOLERANCE[dtype]


@pytest.mark.parametrize("needs", [[True, False, False], [False, True, False], [False, False, False]])
def test_only_gradients_that_are_wanted_are_computed(needs, small_chunks, cupy):
    node = LinearCrossEntropyCUDA(cupy, needs)
    x, weight, targets = head()
    loss, dx, dweight = exact_head(x, weight, targets, 1)
    with running():
        got = node.forward(*map(cupy.asarray, (x, weight, targets)))
        gradients = node.backward(cupy.asarray(np.ones((), np.float32))) if any(needs) else (None, None, None)
        assert error(cuda_checks.host(got), loss) < 1e-5
        for gradient, need, exact in zip(gradients, needs, (dx, dweight)):
            assert (gradient is not None) == need
            assert not need or error(cuda_checks.host(cuda_checks.settled(gradient)), exact) < 1e-5


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_gradient_of_the_weight_waits_in_the_memory_of_the_parameter(overwrite, small_chunks, cupy):
    """Two losses of one weight, and then one more: the second and third are added. What something else has written
    over is computed again."""
    parameter = Parameter(cupy.asarray(head()[1]))
    parameter.grad = cupy.asarray(np.full((57, 24), np.nan, np.float32))
    parameter.zero_grad()
    batches = [(head(seed)[0], head(seed)[2], factor) for seed, factor in ((0, 1.0), (5, 0.25), (9, 3.0))]
    with running():
        losses = [ops.linear_cross_entropy(Tensor(cupy.asarray(x)), parameter, cupy.asarray(t)) * factor
                  for x, t, factor in batches]  # fmt: skip
        if overwrite:
            parameter.lend_grad(object())[...] = -1.0
        for loss in losses:
            loss.backward()
    total = sum(exact_head(x, head()[1], t, factor)[2] for x, t, factor in batches)
    assert error(cuda_checks.host(parameter.grad), total) < 1e-5
