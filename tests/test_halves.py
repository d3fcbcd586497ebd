"""16-bit copies of float32 arrays: one per owner of the memory, cast after writes only, and gone with it."""

import gc
import subprocess
import sys
import threading

import cuda_host
import numpy as np
import pytest
import strict_cupy

import ops
from tinygrad2 import halves
from tinygrad2.dispatch import KERNELS, OPS, kernels, register_kernel
from tinygrad2.distributed.reducer import Reducer
from tinygrad2.distributed.world import World
from tinygrad2.errors import UserError
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.function import Function
from tinygrad2.halves import half_dtype, half_of, halves_written, is_floating, is_half
from tinygrad2.module import Module, Parameter
from tinygrad2.precision import MIXED, matmul_precision
from tinygrad2.tensor import Tensor, apply, no_grad
from tinygrad2.writes import wrote

BFLOAT16 = half_dtype("bfloat16")
FLOAT16 = half_dtype("float16")


@pytest.fixture(params=["numpy", "cupy"])
def xp(request, monkeypatch):
    if request.param == "cupy" and cuda_host.COMPILER is None:
        pytest.skip("g++ is not installed")
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
    assert [dtype.name for dtype in (BFLOAT16, FLOAT16)] == list(MIXED)
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
    np.testing.assert_array_equal(host(copy).astype(np.float32), host(array).astype(dtype).astype(np.float32))


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


def test_weights_that_are_loaded_are_cast_again(xp):
    net = Module()
    net.weight = Parameter(owned(xp, 4, 5))
    half_of(net.weight.data, BFLOAT16)
    net.load_state_dict({"weight": np.full((4, 5), 7, np.float32)})
    assert (host(half_of(net.weight.data, BFLOAT16)) == 7).all()


def test_weights_that_come_from_other_ranks_are_cast_again(xp):
    """With --zero 1: AdamW writes a rank's own part of the copy, and the other parts arrive in float32."""
    net = Module()
    net.weight = Parameter(owned(xp, 4, 5))
    flat = FlatBuffers(net, "cpu" if xp is np else "cuda")
    reducer = Reducer(flat, World(), 1)

    class Shards:
        def all_gather(self, array, name):
            array[...] = 7

    reducer.shards = Shards()
    half_of(flat.data, BFLOAT16)
    reducer.all_gather_weights("weights")
    assert (host(half_of(flat.data, BFLOAT16)) == 7).all()


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


# -- in the graph ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=MIXED)
def half(request, monkeypatch):
    """A dtype of 16 bits; operations run in its precision, on the stand-in for a GPU."""
    strict_cupy.install(monkeypatch)
    with matmul_precision(request.param):
        yield half_dtype(request.param)


@pytest.fixture
def linear_kernel():
    """A kernel for linear that returns 16 bits, as those of ops/kernels/cuda do, and says what it has been given."""
    seen = []

    class LinearHalf(OPS["linear"], backend="cupy"):
        saves_halves = True

        def forward(self, x, weight, bias=None):
            seen.append([x.dtype, weight.dtype])
            dtype = half_dtype(self.precision)
            self.save(x, half_of(weight, dtype))
            return (x.astype("float32") @ weight).astype(dtype)

        def backward(self, dout):
            x, weight = self.saved
            seen.append([dout.dtype, x.dtype])
            dx = dout.astype("float32") @ weight.T.astype("float32")
            return dx, x.T.astype("float32") @ dout.astype("float32"), None

    yield seen
    KERNELS["linear", "cupy"].remove(LinearHalf)


def on_gpu(values, dtype="float32", requires_grad=False):
    array = np.asarray(values, np.float32).astype(dtype)
    return Tensor(array, device="cuda", requires_grad=requires_grad)


def test_a_tensor_of_16_bits():
    for name in MIXED:
        x = Tensor([1.5, -2.0], dtype=name)
        assert x.dtype == half_dtype(name) and x.astype("float32").astype(name).to(name).tolist() == [1.5, -2.0]
        assert Tensor(x.data[::-1]).requires_grad_().dtype == x.dtype and "1.5" in repr(x) and (-x).dtype == x.dtype
        assert x[0].item() == float(x[0]) == 1.5
    readonly = np.zeros(3, BFLOAT16)
    readonly.flags.writeable = False
    assert Tensor(readonly).data.flags.writeable


def test_float32_and_16_bits_meet_in_mixed_precision_only(half):
    wide, narrow = on_gpu([1.0, 2.0]), on_gpu([3.0, 4.0], half)
    for total in (wide + narrow, narrow + wide):
        assert total.dtype == np.float32 and total.tolist() == [4, 6]
    with matmul_precision("highest"), pytest.raises(TypeError, match="operands of different dtypes"):
        wide + narrow
    with pytest.raises(TypeError, match="operands of different dtypes"):
        wide.astype("float64") + narrow
    other = BFLOAT16 if half == FLOAT16 else FLOAT16
    with pytest.raises(TypeError, match="operands of different dtypes"):
        wide + on_gpu([1.0, 2.0], other)
    with pytest.raises(TypeError, match="operands of different dtypes"):
        narrow + on_gpu([1.0, 2.0], other)


@kernels("reference")
def test_ops_without_a_kernel_compute_in_float32(half):
    """Their sums and squares of 16-bit numbers would be useless."""
    x = np.linspace(-30, 300, 64, dtype=np.float32).reshape(4, 16)
    narrow = on_gpu(x, half, requires_grad=True)
    wide = Tensor(host(narrow.data).astype(np.float32), device="cuda", requires_grad=True)
    ones, zeros = (Tensor(np.full(16, value, np.float32), device="cuda") for value in (1, 0))
    for x in (narrow, wide):
        y = ops.layernorm(x, ones, zeros) * 0.5 + x.mean() + 3
        assert y.dtype == np.float32
        (y * y).sum().backward()
        x.result = y
    assert narrow.result.tolist() == wide.result.tolist() and narrow.grad.dtype == half
    np.testing.assert_array_equal(host(narrow.grad), host(wide.grad).astype(half))
    moved = narrow.reshape(16, 4).swapaxes(0, 1)
    assert moved.dtype == half and moved.node.parents[0][0].name == "reshape"
    counted = on_gpu(np.ones(3), half) * Tensor(np.array([257, 1, 2]), device="cuda")
    assert counted.dtype == np.float32 and counted.tolist() == [257, 1, 2]   # 257 is no bfloat16


def test_gradients_get_the_dtype_of_their_input(half, linear_kernel):
    """x is float32, hidden has 16 bits, and is used twice; weights have float32 gradients."""
    rng = np.random.default_rng(0)
    x = on_gpu(rng.standard_normal((8, 4)), requires_grad=True)
    w = on_gpu(rng.standard_normal((4, 4)), requires_grad=True)
    hidden = ops.linear(x, w)
    out = ops.linear(hidden, w) + hidden
    assert hidden.dtype == half and out.dtype == np.float32
    out.sum().backward()
    assert linear_kernel == [[x.dtype, w.dtype], [half, w.dtype], [half, half], [half, x.dtype]]
    assert x.grad.dtype == w.grad.dtype == np.float32
    exact = host(w.data).astype(np.float64)
    wanted = np.ones((8, 4)) @ (exact + np.eye(4)).T @ exact.T
    np.testing.assert_allclose(host(x.grad), wanted, rtol=0.05, atol=0.1)


def test_what_kernels_save_is_not_packed(half, linear_kernel):
    x, w = on_gpu(np.ones((8, 4)), requires_grad=True), on_gpu(np.ones((4, 4)), requires_grad=True)
    node = ops.linear(x, w).node
    assert type(node.saved) is tuple and node.saved[0] is x.data
    with kernels("reference"):
        node = ops.linear(x, w).node
    assert (type(node.saved) is tuple) == (half == FLOAT16)         # float16 would lose bits as bfloat16


@pytest.mark.parametrize("name", ["linear", "split_heads"])
@kernels("reference")
def test_the_reference_implementations_round_operands(half, name):
    x = on_gpu(np.random.default_rng(0).standard_normal((2, 4, 12)))
    rounded = host(x.data).astype(half).astype(np.float32)
    if name == "linear":
        w = on_gpu(np.random.default_rng(1).standard_normal((12, 3)))
        wanted = rounded.reshape(-1, 12) @ host(w.data).astype(half).astype(np.float32)
        np.testing.assert_allclose(host(ops.linear(x, w).data).reshape(-1, 3), wanted, rtol=1e-5, atol=1e-6)
    else:
        q, _, _ = ops.split_heads(x, 2)
        np.testing.assert_array_equal(host(q.data)[0, 1], rounded[0, :, 2:4])


def test_a_gradient_of_another_dtype_is_refused_elsewhere(half):
    class Widens(Function):
        saves_halves = True

        def forward(self, x):
            return x

        def backward(self, dout):
            return dout.astype("float64")

    try:
        with pytest.raises(TypeError, match="the gradient of input 0 is float64, the input"):
            apply(Widens, on_gpu([1.0], half, requires_grad=True)).sum().backward()
    finally:
        del OPS["widens"]


def test_float16_is_for_gpus():
    with matmul_precision("float16"), pytest.raises(ValueError, match="float16 is for arrays on a GPU; on the CPU use"):
        Tensor([1.0]) + 1


@pytest.mark.parametrize("key", [(slice(1, None), ...), 2, np.array([2, 0, 2])], ids=["slice", "row", "repeated"])
def test_what_is_taken_of_16_bits_stays_in_16_bits(half, key):
    """Its gradient too; where an element is taken twice, it is a sum in float32, rounded once."""
    x = on_gpu(np.arange(12).reshape(4, 3), half, requires_grad=True)
    key = cupy_key(key)
    taken = x[key]
    assert taken.dtype == half and taken.tolist() == host_of(x)[key if not hasattr(key, "get") else key.get()].tolist()
    weights = [1.0, 256.0, 3.0]
    (taken * on_gpu(weights, half)).sum().backward()
    expected = np.zeros((4, 3))
    np.add.at(expected, key if not hasattr(key, "get") else key.get(), np.broadcast_to(weights, taken.shape))
    assert x.grad.dtype == half and x.grad.astype("float32").tolist() == expected.tolist()


def cupy_key(key):
    return strict_cupy.cupy.asarray(key) if isinstance(key, np.ndarray) else key


def host_of(x):
    return x.data.astype("float32").get()
