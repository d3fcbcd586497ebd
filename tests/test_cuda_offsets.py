"""Kernels reach elements more than 2^32 from the start of an array: offsets are 64-bit integers. The arrays are large,
but memory is used only for what is read or written."""

import mmap
import sys

import cuda_checks
import fake_cublaslt
import numpy as np
import pytest
import strict_cupy
from cuda_host import needs_compiler, running

from ops.dropout import keep_mask
from ops.kernels.cuda.attention import AttentionCUDA
from ops.kernels.cuda.cast import cast
from ops.kernels.cuda.column_sums import bias_gradient
from ops.kernels.cuda.cross_entropy import softmax_loss
from ops.kernels.cuda.dropout import DropoutCUDA
from ops.kernels.cuda.elements import launch_elements
from ops.kernels.cuda.embedding import EmbeddingCUDA, _writer
from ops.kernels.cuda.launch import launch
from ops.kernels.cuda.row_products import dequantized, rows_by_bfloat16, rows_by_int8
from tinygrad2.dispatch import KERNELS
from tinygrad2.halves import half_dtype
from tinygrad2.optim import NORM_BLOCK, adam_update, block_square_sums

FAR = 2**32 + 64                                                 # blockIdx.x * n is unsigned
NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)                # Linux's
pytestmark = [needs_compiler, pytest.mark.skipif(sys.platform != "linux", reason="memory is reserved when asked for")]
pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: bfloat16 on a GPU needs it")


@pytest.fixture
def cupy(monkeypatch):
    cupy = strict_cupy.install(monkeypatch)
    fake_cublaslt.install(monkeypatch)
    return cupy


def zeros(n, dtype):
    """n zeros, of which the system has none yet."""
    try:
        memory = mmap.mmap(-1, n * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
    except (OSError, ValueError) as problem:
        pytest.skip(f"no address space: {problem}")
    return np.frombuffer(memory, np.dtype(f"u{dtype.itemsize}")).view(dtype)


def apart(array, axis, distance=FAR):
    """The array with its parts along an axis so many elements apart."""
    strides = list(array.strides)
    strides[axis] = distance * array.itemsize
    far = np.lib.stride_tricks.as_strided(
        zeros(distance * array.shape[axis], array.dtype), array.shape, strides, writeable=True
    )
    far[...] = array
    return far


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def array_dtype(name):
    return np.dtype(np.float32) if name == "float32" else half_dtype(name)


@pytest.mark.parametrize("C", [4096, 4097])
def test_a_row_at_the_end_of_a_large_table(C, cupy):
    V = FAR // C + 1
    weight, ids = zeros(V * C, np.dtype(np.float32)).reshape(V, C), np.array([V - 1, 0, V - 1])
    weight[-1], weight[0] = normal(C), 1
    dout, node = normal(3, C, seed=1), EmbeddingCUDA(cupy, [True, False])
    with running(check=False):
        out = node.forward(strict_cupy.ndarray(weight), cupy.asarray(ids))
        assert np.array_equal(out.get(), weight[ids])
        expected = weight[-1] + (dout[0] + dout[2])
        node.backward(cupy.asarray(dout))[0].write_to(strict_cupy.ndarray(weight), accumulate=True)
    assert np.allclose(weight[-1], expected, atol=1e-5) and np.allclose(weight[0], 1 + dout[1], atol=1e-5)


@pytest.mark.parametrize("dtype", cuda_checks.DTYPES)
def test_rows_of_logits_that_are_far_apart(dtype, cupy):
    near = normal(3, 300).astype(array_dtype(dtype))
    targets, found = cupy.asarray(np.array([5, 299, 0])), []
    for logits in (near.copy(), apart(near, 0, FAR // 2)):
        boxed, losses = strict_cupy.ndarray(logits), cupy.empty(3, np.float32)
        with running(check=False):
            softmax_loss(cupy, boxed, targets, -1, losses, boxed)
        found.append((losses.get(), logits.astype(np.float32)))
    for a, b in zip(*found):
        assert np.array_equal(a, b) and np.isfinite(a).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("Tq, hs", [(1, 16), (20, 16), (20, 9)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_heads_that_are_far_apart(dtype, Tq, hs, axis, cupy):
    """Batches, heads or rows of q, k, v and dout: the same bits as next to each other."""
    arrays = [normal(2, 2, T, hs, seed=T).astype(array_dtype(dtype)) for T in (Tq, 20, 20, Tq)]
    distance = FAR // 8 if axis == 2 else FAR                     # rows from the 9th on are so far away
    found = []
    for q, k, v, dout in (arrays, [apart(array, axis, distance) for array in arrays]):
        with cuda_checks.in_precision(dtype), running(check=False):
            node = AttentionCUDA(cupy, [True] * 3)
            out = node.forward(*map(strict_cupy.ndarray, (q, k, v)))
            found.append([x.get() for x in (out, *node.backward(strict_cupy.ndarray(dout)))])
    assert all(np.array_equal(a, b) for a, b in zip(*found)) and all(map(np.any, found[0]))


# -- the first and the last blocks of a launch over a large array -----------------------------------------------------

ROWS = 4                                                          # at the end, and blocks that run at each end


@pytest.fixture
def large(cupy, monkeypatch):
    """large(array): the array behind so many zeros that it ends beyond 2^32 elements. Large arrays that
    kernels write to begin as zeros, which take no memory; of each launch the first and last blocks run."""
    empty = cupy.empty

    def reserved(shape, dtype):
        n, dtype = int(np.prod(shape)), np.dtype(dtype)
        return strict_cupy.ndarray(zeros(n, dtype).reshape(shape)) if n >= 2**14 else empty(shape, dtype)

    monkeypatch.setattr(cupy, "empty", reserved)
    monkeypatch.setattr(cupy, "empty_like", lambda x, dtype=None: reserved(x.shape, dtype or x.dtype))

    def behind_zeros(array, before=None):
        row = array[0].size
        before = -(-FAR // row) if before is None else before
        whole = zeros((before + len(array)) * row, array.dtype).reshape(-1, *array.shape[1:])
        whole[-len(array) :] = array
        return strict_cupy.ndarray(whole)

    with running(check=False, ends=ROWS):
        yield behind_zeros


def same_end(large, small):
    """Do large arrays end with the small ones?"""
    for far, near in zip(large, small, strict=True):
        far, near = far._a, near._a
        assert far.size > 2**32 and near.any() and np.array_equal(far[-len(near) :], near)


@pytest.mark.parametrize("C", [1024, 1025])
@pytest.mark.parametrize("name", ["layernorm", "add_layernorm", "softmax", "log_softmax"])
def test_rows_at_the_end_of_a_large_array(name, C, large, cupy):
    """Forward and backward. The rows are so many that the last ones belong to the last blocks of backward, too."""
    (kernel,) = KERNELS[name, "cupy"]
    rows, count = (1 if "soft" in name else ROWS), (4 if name == "add_layernorm" else 2)
    arrays = [normal(rows, C, seed=seed) for seed in range(count)]
    before = -(-FAR // C) // 2112 * 2112 + 2112 - rows            # 528 blocks of 4 warps
    vectors = [cupy.asarray(normal(C, seed=seed)) for seed in (8, 9)] if "norm" in name else []

    def run(*boxes):
        half = len(boxes) // 2
        node = kernel(cupy, [True] * (half + len(vectors)))
        out = node.forward(*boxes[:half], *vectors)
        gradients = node.backward(boxes[half:] if isinstance(out, tuple) else boxes[half])
        dx = gradients[0].copy() if name == "layernorm" else gradients[0]              # that one is deferred
        return [*(out if isinstance(out, tuple) else (out,)), dx]

    with running(check=False, ends=1):
        same_end(run(*(large(array, before) for array in arrays)), run(*map(cupy.asarray, arrays)))


@pytest.mark.parametrize("dtype, C", [("float16", 1024), ("float32", 1025)])
def test_sums_of_the_last_rows(dtype, C, large, cupy):
    rows = normal(ROWS, C).astype(array_dtype(dtype))
    with running(check=False, ends=33):                           # blocks of 32 columns each, or fewer
        sums = bias_gradient(cupy, large(rows)).copy().get()
    assert np.allclose(sums, rows.astype(np.float64).sum(0), atol=1e-5)


@pytest.mark.parametrize("n", [8, 13])
def test_the_last_elements_of_a_large_array(n, large, cupy):
    """Of kernels that take arrays as they are, 8 elements a thread; 13: the last thread has fewer."""
    a, b, c, d = (np.abs(normal(n, seed=seed)) for seed in range(4))
    half = np.dtype(np.float16)

    def run(place):
        def node(name, *arrays, **options):
            (kernel,) = KERNELS[name, "cupy"]
            return kernel(cupy, [True] * len(arrays)).forward(*map(place, arrays), **options)

        state = [place(x) for x in (a, b, c, d)]
        adam_update(*state, 0.5, 3, 1e-2, 0.9, 0.95, 1e-8, 0.1)
        values = place(a)
        scaled = place(a.astype(half))
        factors = (cupy.asarray(np.asarray(x, np.float32)) for x in (2, 0.25))
        launch_elements(cupy, "cross_entropy", "scale", half, (scaled, scaled), *factors, np.int32(0))
        unary = [node(name, a) for name in ("gelu", "gelu_erf", "exp")]
        return [state[0], *state[2:], scaled, cast(cupy, values, half), cast(cupy, place(a.astype(half)), np.float32),
                *unary, node("mul", a, b), node("maximum", a, b), node("add", a, b)]  # fmt: skip

    same_end(run(large), run(cupy.asarray))


def test_the_mask_of_the_last_elements(large, cupy):
    values = np.ones(400, np.float32)
    far = large(values)
    out = DropoutCUDA(cupy, [True]).forward(far, 0.5, 3, 2**40)
    mask = keep_mask(np, values.shape, 0.5, 3, 2**40 + far.size - 400, np.float32)
    assert np.array_equal(out._a[-400:], mask) and 0 < np.count_nonzero(mask) < 400


def test_squares_at_the_end_of_a_large_gradient(large, cupy):
    values = normal(70_000)
    sums = block_square_sums(large(values)).get()
    end = (FAR + 70_000) % NORM_BLOCK
    assert np.allclose(sums[-1], (values[-end:].astype(np.float64) ** 2).sum()) and len(sums) > 2**16


@pytest.mark.parametrize("inputs", [4096, 4097])
def test_the_last_rows_of_a_large_matrix(inputs, large, cupy):
    """Of small numbers, and written out."""
    rng = np.random.default_rng(0)
    q, x = rng.integers(-127, 128, (ROWS, inputs)).astype(np.int8), cupy.asarray(normal(2, inputs))
    found = []
    for place in (large, cupy.asarray):
        matrix, half = place(q), place(q.astype(half_dtype("bfloat16")))
        scale = cupy.asarray(np.full(len(matrix), 0.5, np.float32))
        products = rows_by_int8(cupy, x, matrix, scale, None), rows_by_bfloat16(cupy, x, half, None)
        written = dequantized(cupy, matrix, scale, np.dtype(np.float32))
        found.append([written._a[-ROWS:], *(product._a[:, -ROWS:] for product in products)])
    assert all(np.array_equal(a, b) and a.any() for a, b in zip(*found))


@pytest.mark.parametrize("C", [1024, 1025])
def test_rows_of_very_many_ids(C, large, cupy):
    weight, ids, dout = normal(6, C), np.zeros(-(-FAR // C // 8) * 8, np.int64), large(normal(3, C))
    ids[-ROWS:] = 2, 5, 0, 1
    out = EmbeddingCUDA(cupy, [True, False]).forward(cupy.asarray(weight), cupy.asarray(ids))
    assert out.size >= 2**32 and np.array_equal(out._a[-ROWS:], weight[ids[-ROWS:]])
    positions = len(dout) - np.array([3, 1, 2])                   # of two rows of id 2, and one of id 4
    keys, dweight = np.array([2, 2, 4]) * 2**32 + positions, cupy.asarray(np.ones((6, C), np.float32))
    with running(check=False):
        _writer(cupy, dout, cupy.asarray(keys))(dweight, True)
    added = dout._a[positions]
    expected = np.ones((6, C), np.float32)
    expected[[2, 4]] += added[0] + added[1], added[2]
    assert np.array_equal(dweight.get(), expected)


@pytest.mark.parametrize("hs", [64, 60])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("T", [1, 16])
def test_the_last_heads_of_very_many(T, dtype, hs, large, cupy):
    arrays = [normal(4, 1, T, hs, seed=seed).astype(array_dtype(dtype)) for seed in range(4)]
    found = []
    for place in (large, cupy.asarray):
        with cuda_checks.in_precision(dtype):
            q, k, v, dout = map(place, arrays)
            node = AttentionCUDA(cupy, [True] * 3)
            out = node.forward(q, k, v)
            found.append([x._a[-2:] for x in (out, *node.backward(dout))])
    for far, near in zip(*found):
        assert np.array_equal(far, near) and np.isfinite(near.astype(np.float32)).all() and (T == 1 or near.any())


def test_a_place_far_back_in_a_cache(large, cupy):
    size, hs = FAR // 64, 64
    cache = [strict_cupy.ndarray(zeros(2 * size * hs, np.dtype(np.float16)).reshape(2, size, hs)) for _ in range(2)]
    new = [cupy.asarray(normal(2, hs, seed=seed).astype(np.float16)) for seed in range(2)]
    args = new[0], np.int64(hs), new[1], np.int64(hs), *cache, cupy.asarray(np.array([size - 2]))
    launch(cupy, "kv_cache", "kv_append", np.float16, 1, 128, (*args, np.int32(2), np.int32(size), np.int32(hs)))
    for rows, whole in zip(new, cache):
        assert np.array_equal(whole._a[:, -2], rows._a) and not whole._a[:, [0, 1, -3, -1]].any()
