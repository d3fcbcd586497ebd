"""The kernel with which a CUDA graph attends to a cache: place and number of the keys are read on the GPU."""

import cuda_checks
import numpy as np
import pytest
import strict_cupy
from cuda_host import needs_compiler, running
from kernel_checks import error

from ops.attention import Attention
from ops.kernels.cuda.attention import AttentionCUDA
from tinygrad2.dispatch import fast_version
from tinygrad2.halves import half_dtype

pytestmark = needs_compiler
pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: bfloat16 on a GPU needs it")

OUTSIDE, DIFFERS = "outside|beyond the end", "differs"


@pytest.fixture
def cupy(monkeypatch):
    return strict_cupy.install(monkeypatch)


def check(cupy, nh, size, hs, position, dtype="float32", reverse=False):
    """A token's attention to a cache, whose places behind it hold NaN: the reference's result, the bits of attention to
    the keys there are; k and v at their place, and all else as it was."""
    dtype = np.dtype(np.float32) if dtype == "float32" else half_dtype(dtype)
    rng = np.random.default_rng(0)
    packed = rng.standard_normal((1, 1, 3, nh, hs)).astype(dtype)
    keys, values = rng.standard_normal((2, 1, nh, size, hs)).astype(dtype)
    keys[:, :, position:] = values[:, :, position:] = np.nan
    q, k, v = packed.transpose(2, 0, 3, 1, 4)
    before = keys.copy(), values.copy()
    for cache, new in zip(before, (k, v)):
        cache[:, :, position : position + 1] = new
    until = [cache[:, :, : position + 1] for cache in before]
    on_device = [cupy.asarray(keys), cupy.asarray(values), cupy.asarray(np.array([7, position]))[1:]]
    boxed = cupy.asarray(packed).transpose(2, 0, 3, 1, 4)
    outs = cupy.asarray(np.full((3, nh, 1, hs), np.nan, dtype))
    out = outs[1:2]
    attend = fast_version("attend_cached", cupy, *boxed, out, *on_device)
    with running(reverse=reverse) as launches, strict_cupy.no_sync():
        attend(*boxed, out, *on_device)
    assert launches == ["kv_append", "attention_split", "attention_join"]
    for cache, expected in zip(on_device, before):
        assert np.array_equal(cache.get(), expected, equal_nan=True), f"the cache differs at {position}"
    exact = Attention(np, [False] * 3).forward(*(x.astype(np.float64) for x in (q, *until)))
    assert np.isnan(outs.get()[[0, 2]]).all()
    off = error(out.get().astype(np.float64), exact)
    assert off <= cuda_checks.TOLERANCE[dtype.name], f"differs by {off:.1e}"
    with running(reverse=reverse), cuda_checks.in_precision(dtype.name):
        usual = AttentionCUDA(cupy, [False] * 3).forward(*map(cupy.asarray, (q, *until)))
    assert np.array_equal(out.get(), usual.get()), "differs from attention to the keys that are there"


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", cuda_checks.DTYPES)
@pytest.mark.parametrize("nh, size, hs, position", [
    (2, 5, 8, 0), (2, 5, 8, 4), (3, 200, 64, 0), (3, 200, 64, 63), (3, 200, 64, 64), (1, 129, 20, 128),
    (2, 130, 33, 70), (70, 300, 4, 255), (70, 300, 4, 256),
])  # fmt: skip
def test_attention_to_the_keys_before_a_place_that_the_gpu_knows(nh, size, hs, position, dtype, reverse, cupy):
    check(cupy, nh, size, hs, position, dtype, reverse)


def test_a_place_outside_the_cache_is_not_written(cupy):
    """The host checks it; if it did not, memory of others stays what it is."""
    rng = np.random.default_rng(0)
    arrays = (rng.standard_normal((1, 2, n, 4)).astype(np.float32) for n in (1, 1, 1, 3, 3))
    q, k, v, keys, values = map(cupy.asarray, arrays)
    before = keys.get(), values.get()
    for position in (-1, 3, 2**40):
        arrays = q, k, v, cupy.empty((1, 2, 1, 4), np.float32), keys, values, cupy.asarray(np.array([position]))
        with running():
            fast_version("attend_cached", cupy, *arrays)(*arrays)
        assert np.array_equal(keys.get(), before[0]) and np.array_equal(values.get(), before[1])


def test_other_caches_are_left_to_the_usual_way(cupy):
    def supported(q=(1, 2, 1, 4), cache=(1, 2, 3, 4), dtype=np.float32, cut=slice(None)):
        q = cupy.zeros(q, np.float32)
        keys = cupy.zeros(cache, dtype)[:, :, cut]
        return fast_version("attend_cached", cupy, q, q, q, q, keys, keys, cupy.zeros(1, np.int64)) is not None

    assert supported() and not supported(dtype=np.float16) and not supported(cache=(2, 2, 3, 4))
    assert not supported(cut=slice(1, None)) and not supported((1, 1, 1, 257), (1, 1, 3, 257))


FAULTS = {
    "the place of the first token": ("kv_cache", "* size + row) * hs", "* size) * hs", DIFFERS),
    "one head for all": ("kv_cache", "keys[place] = k[head * k_head + channel]", "keys[place] = k[channel]", DIFFERS),
    "keys for values": ("kv_cache", "values[place] = v[", "values[place] = k[", DIFFERS),
    "threads behind the last channel": ("kv_cache", "i >= nh * hs || ", "", OUTSIDE),
    "the newest key does not count": ("attention_cached", "*position + 1)", "*position)", DIFFERS),
    "a key too many": ("attention_cached", "*position + 1)", "*position + 2)", DIFFERS),
    "all keys count": ("attention_cached", "if (position) Tk", "if (0) Tk", DIFFERS),
    "parts without keys": ("attention_cached", "all += begin < end ? total_of[i]", "all += 1 ? 1", DIFFERS),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("reverse", [False, True])
def test_a_planted_fault_is_found(fault, reverse, cupy):
    *place, message = FAULTS[fault]
    with cuda_checks.planted(*place), pytest.raises(AssertionError, match=message):
        check(cupy, 3, 200, 20, 130, reverse=reverse)
