"""16-bit copies of float32 arrays: one per owner of the memory, cast after writes only, and gone with it."""

import gc
import subprocess
import sys
import threading

import numpy as np
import pytest
import strict_cupy

from tinygrad2 import halves
from tinygrad2.dispatch import KERNELS, register_kernel
from tinygrad2.errors import UserError
from tinygrad2.halves import half_dtype, half_of, halves_written, is_floating, is_half
from tinygrad2.tensor import Tensor, no_grad
from tinygrad2.writes import wrote

BFLOAT16 = half_dtype("bfloat16")
FLOAT16 = half_dtype("float16")


@pytest.fixture(params=["numpy", "cupy"])
def xp(request, monkeypatch):
    return np if request.param == "numpy" else strict_cupy.install(monkeypatch)


def host(array):
    return array if isinstance(array, np.ndarray) else array.get()


def owned(xp, *shape):
    array = xp.empty(shape, dtype=np.float32)
    array[...] = xp.asarray(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    return array


@pytest.fixture
def casts(monkeypatch, xp):
    """A list that gets the size of each array that is cast."""
    sizes = []

    @register_kernel("cast_to_half", xp.__name__, supports=lambda values, out: True)
    def cast(values, out):
        sizes.append(values.size)
        halves.cast_to_half.__wrapped__(values, out)

    yield sizes
    KERNELS["cast_to_half", xp.__name__].remove(cast)


def test_dtypes():
    assert [dtype.name for dtype in (BFLOAT16, FLOAT16)] == list(halves.HALVES)
    with pytest.raises(ValueError, match="one of bfloat16, float16, not 'float32'"):
        half_dtype("float32")


def test_which_dtypes_are_floats():
    import ml_dtypes

    floats = [np.dtype(name) for name in ("float16", "float32", "float64", "bfloat16")]
    others = [np.dtype(name) for name in ("int16", "uint16", "bool", "complex64", "V2", "U1", "S2")]
    others += [np.dtype(kind) for kind in (ml_dtypes.uint1, ml_dtypes.int1, ml_dtypes.bcomplex32)]
    assert all(map(is_floating, floats)) and not any(map(is_floating, others))
    assert [dtype for dtype in floats + others if is_half(dtype)] == [FLOAT16, BFLOAT16]


def test_without_ml_dtypes_only_bfloat16_is_missing():
    script = """
import sys
sys.modules["ml_dtypes"] = None
import numpy as np
from tinygrad2.halves import half_dtype, half_of, is_floating
assert half_of(np.ones(3, np.float32), half_dtype("float16")).dtype == "float16" and is_floating(np.dtype("float32"))
try:
    half_dtype("bfloat16")
except Exception as error:
    print(type(error).__name__, error)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)
    assert result.stdout.startswith("UserError arrays of bfloat16 need the library ml_dtypes: pip install ml_dtypes")
    assert issubclass(UserError, Exception) and not result.stderr


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16])
def test_values_are_rounded_to_nearest(xp, dtype):
    array = xp.asarray(np.array([1, -2.5, 1 + 2**-9, 1 + 3 * 2**-9, 1 + 2**-12, 3e-8, 0, np.inf, np.nan], np.float32))
    copy = half_of(array, dtype)
    assert copy.dtype == dtype
    np.testing.assert_array_equal(host(copy).view(np.uint16), host(array).astype(dtype).view(np.uint16))


def test_views_are_views_of_one_copy(xp, casts):
    """As parameters of a flat buffer are; also transposed, with gaps, backwards, without elements."""
    flat = owned(xp, 600)
    matrix = flat[48:348].reshape(15, 20)
    views = [flat, matrix, matrix.T, matrix[2:9, 3:7], matrix[::-2, ::3], matrix.reshape(3, 5, 20).transpose(2, 0, 1)]
    views += [matrix[4], matrix[4, 4:4], matrix[3, 3, ...], flat[599:]]
    views += [xp.broadcast_to(matrix[0], (4, 20)), matrix[:, None]]
    for view in views:
        copy = half_of(view, BFLOAT16)
        assert copy.shape == view.shape and (view.size == 0 or copy.strides == tuple(s // 2 for s in view.strides))
        np.testing.assert_array_equal(host(copy), host(view).astype(BFLOAT16))
        assert half_of(view, BFLOAT16) is copy
    assert casts == [600]
    half_of(matrix, FLOAT16)
    assert casts == [600, 600]


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_owners_of_any_order_in_memory(xp, order, casts):
    array = owned(xp, 3, 4, 5).transpose(order)
    np.testing.assert_array_equal(host(half_of(array, BFLOAT16)), host(array).astype(BFLOAT16))
    owner = np.asarray(np.zeros((5, 4, 3), np.float32).transpose(order) + 1)       # NumPy keeps the order
    np.testing.assert_array_equal(half_of(owner, FLOAT16), owner)


def test_an_owner_with_gaps_is_cast_by_itself():
    memory = np.arange(24, dtype=np.float32)
    array = np.lib.stride_tricks.as_strided(memory, (3, 4), (32, 4))
    np.testing.assert_array_equal(half_of(array, FLOAT16), array)
    memory += 1                                                    # nothing knows that it is the same memory
    np.testing.assert_array_equal(half_of(array, FLOAT16), array)


def test_a_write_is_followed_by_one_cast(xp, casts):
    flat = owned(xp, 400)
    p, q = Tensor(flat[:200]), Tensor(flat[200:])
    for _ in range(3):
        half_of(p.data, BFLOAT16), half_of(q.data, BFLOAT16)
    assert casts == [400]
    with no_grad():
        q *= 2.0
    for x in (p, q):
        np.testing.assert_array_equal(host(half_of(x.data, BFLOAT16)), host(x.data).astype(BFLOAT16))
    other = owned(xp, 400)
    wrote(other)                                                   # somebody else's memory
    half_of(p.data, BFLOAT16)
    assert casts == [400, 400]


def test_a_writer_may_bring_the_copy_up_to_date(xp, casts):
    flat = owned(xp, 64)
    copy = half_of(flat, BFLOAT16)
    flat[...] = 3
    copy[...] = 3
    wrote(flat)
    halves_written(flat[10:20], BFLOAT16)
    assert half_of(flat, BFLOAT16) is copy and casts == [64]
    wrote(flat)
    half_of(flat, BFLOAT16)
    assert casts == [64, 64]
    halves_written(owned(xp, 3), BFLOAT16)                         # an array without a copy


def test_a_copy_goes_with_its_owner(xp):
    gc.collect()
    before = len(halves._copies)
    flat = owned(xp, 64)
    view = flat[3:9]
    half_of(view, BFLOAT16)
    del flat
    gc.collect()
    assert len(halves._copies) == before + 1                       # the view keeps the memory
    del view
    gc.collect()
    assert len(halves._copies) == before


def test_arrays_of_16_bits_are_returned_and_others_refused(xp):
    array = xp.asarray(np.ones(3, np.float16))
    assert half_of(array, FLOAT16) is array
    for dtype in (BFLOAT16, np.dtype(np.float32)):
        with pytest.raises(TypeError, match="a 16-bit copy is made of float32"):
            half_of(array, dtype)
    with pytest.raises(TypeError, match="not of int64 in float16"):
        half_of(xp.asarray(np.arange(3)), FLOAT16)


def test_many_views_do_not_pile_up(xp, monkeypatch):
    monkeypatch.setattr(halves, "_MOST_VIEWS", 10)
    flat = owned(xp, 64)
    for i in range(30):
        np.testing.assert_array_equal(host(half_of(flat[i:], FLOAT16)), host(flat[i:]).astype(np.float16))
    assert len(halves._copies[id(flat)][FLOAT16]._views) <= 10


def test_threads_share_a_copy(casts, xp):
    flat, copies = owned(xp, 1 << 16), []
    barrier = threading.Barrier(8)

    def use():
        barrier.wait()
        copies.append(half_of(flat, BFLOAT16))

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert casts == [1 << 16] and all(copy is copies[0] for copy in copies) and len(copies) == 8
