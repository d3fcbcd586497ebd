"""Kernels reach elements more than 2^31 from the start of an array: offsets are 64-bit integers. The arrays are large,
but memory is used only for what is read or written."""

import mmap
import sys

import cuda_checks
import fake_cublaslt
import numpy as np
import pytest
import strict_cupy
from cuda_host import needs_compiler, running

from ops.kernels.cuda.attention import AttentionCUDA
from ops.kernels.cuda.cross_entropy import softmax_loss
from ops.kernels.cuda.embedding import EmbeddingCUDA
from tinygrad2.halves import half_dtype

FAR = 2**31 + 64
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
