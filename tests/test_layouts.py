"""Every op on arrays as they come from files, other programs and slices: read-only, mapped, of the other byte order,
not aligned, in any memory layout. Values and gradients are those of plain arrays, with and without kernels."""

import numpy as np
import pytest
from kernel_checks import cotangent, error, has_gradient, is_float, joined, reference_ops
from marks import slow_but
from samples import SAMPLES

import ops
from models import GPT, GPTConfig
from tinygrad2 import Parameter, Tensor, apply, no_grad
from tinygrad2.dispatch import OPS, kernels
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.optim import Adam

REFERENCE = reference_ops(OPS)


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def from_buffer(a):
    return np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape)


def other_byte_order(a):
    return a.astype(a.dtype.newbyteorder())


def fortran(a):
    return a.copy(order="F")


def every_second(a):
    wide = np.zeros(tuple(2 * n for n in a.shape), a.dtype)
    view = wide[(*(slice(None, None, 2) for _ in a.shape), ...)]
    view[...] = a
    return view


def backwards(a):
    reverse = (*(slice(None, None, -1) for _ in a.shape), ...)
    return a[reverse].copy()[reverse]


def unaligned(a):
    view = np.ndarray(a.shape, a.dtype, bytearray(a.nbytes + 1), 1)
    view[...] = a
    return view


def broadcast(a):
    """Stride 0 where a shape has an axis of size 1, and read-only."""
    return np.broadcast_to(a.reshape(()) if a.size == 1 else a, a.shape)


def subclass(a):
    return a.copy().view(type("Mapped", (np.ndarray,), {}))


_ALL = [read_only, from_buffer, other_byte_order, fortran, every_second, backwards, unaligned, broadcast, subclass]
LAYOUTS = {layout.__name__: layout for layout in _ALL}


def computed(name, arrays, options, change_dout=lambda dout: dout):
    """[result, gradients]; the incoming gradient passes through change_dout."""
    tensors = [Tensor(a, requires_grad=is_float(a)) if isinstance(a, np.ndarray) else a for a in arrays]
    out = joined(apply(REFERENCE[name], *tensors, **options))
    if not has_gradient(REFERENCE[name]):
        return [out.numpy()]
    out.backward(change_dout(cotangent(out.data)))
    return [out.numpy(), *(t.grad for t in tensors if isinstance(t, Tensor) and t.requires_grad)]


@pytest.mark.parametrize("mode", ["auto", "reference"])
@pytest.mark.parametrize("layout", slow_but(["read_only", "other_byte_order", "every_second"], list(LAYOUTS)))
@pytest.mark.parametrize("name", sorted(REFERENCE))
def test_every_op_takes_arrays_of_every_layout(name, layout, mode):
    change = LAYOUTS[layout]
    with kernels(mode):
        for sample in SAMPLES[name]:
            if any(isinstance(value, tuple) and len(value) and max(value) > 1000 for value in sample.inputs):
                continue  # large ones are for speed and rounding
            arrays = sample.arrays(np.float32)
            changed = [change(a) if isinstance(a, np.ndarray) else a for a in arrays]
            expected = computed(name, arrays, sample.options)
            for got, want in zip(computed(name, changed, sample.options, change), expected, strict=True):
                assert type(got) is np.ndarray and got.dtype == want.dtype and got.dtype.isnative
                assert got.shape == want.shape and error(got, want, 1e-3) < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_operands_that_are_no_tensors_may_have_any_layout(layout):
    x, change = Tensor(np.arange(12.0, dtype=np.float32).reshape(3, 4), requires_grad=True), LAYOUTS[layout]
    a = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    expected = (x * a + a @ x.numpy().T @ a).numpy()
    out = x * change(a) + change(a) @ x.T @ change(a)
    out.sum().backward()
    assert np.allclose(out.numpy(), expected) and x.grad.dtype == np.float32
    ids = change(np.array([[2, 0], [1, 1]]))
    assert np.array_equal(ops.embedding(x, ids).numpy(), x.numpy()[[[2, 0], [1, 1]]])
    assert np.isfinite(ops.cross_entropy(x, change(np.array([0, 1, 3]))).item())
    assert x[change(np.array([2, 0]))].shape == (2, 4)


def test_arrays_of_files_and_tables(tmp_path):
    a = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)
    before = a.copy()
    np.save(tmp_path / "a.npy", a)
    a.astype(">f4").tofile(tmp_path / "a.bin")
    forms = [
        np.load(tmp_path / "a.npy", mmap_mode="r"),
        np.load(tmp_path / "a.npy", mmap_mode="c"),
        np.memmap(tmp_path / "a.bin", ">f4", "r", shape=a.shape),
        np.frombuffer((tmp_path / "a.bin").read_bytes(), ">f4").reshape(a.shape),
        memoryview(a.copy()),
    ]
    weight, bias = Tensor(np.ones(16, np.float32)), Tensor(np.zeros(16, np.float32))
    expected = ops.layernorm(Tensor(a), weight, bias).numpy()
    for form in forms:
        x = Tensor(form, requires_grad=True)
        out = ops.layernorm(x, weight, bias)
        (out * out * out).sum().backward()
        assert type(x.data) is np.ndarray and np.array_equal(out.numpy(), expected) and x.grad.any()
        with no_grad():
            x += 1  # the file, if it is one, stays as it is
    assert np.array_equal(np.load(tmp_path / "a.npy"), before)


def test_columns_of_tables():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    table = pandas.DataFrame({"x": [1.0, 2.0], "n": [3, 4], "short": np.array([1, 2], np.float32)})
    assert Tensor(table["x"]).dtype == np.float64 and Tensor(table["n"]).dtype == np.int64
    assert Tensor(table["x"], dtype="float32").exp().dtype == np.float32
    assert Tensor(table[["x", "n"]]).shape == (2, 2) and ops.softmax(Tensor(table["short"])).shape == (2,)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parameters_own_memory_that_can_be_written_to(layout):
    a = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    given = LAYOUTS[layout](a)
    parameter = Parameter(given)
    (parameter * parameter).sum().backward()
    with no_grad():
        parameter -= 0.5 * parameter.grad
    assert np.array_equal(parameter.data, np.zeros((2, 3))) and np.array_equal(parameter.grad, 2 * a)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["auto", "reference"])
def test_a_model_trains_on_weights_and_ids_of_any_layout(layout, mode):
    change, config = LAYOUTS[layout], GPTConfig(block_size=8, vocab_size=30, n_layer=1, n_head=2, n_embd=16)
    ids = np.random.default_rng(3).integers(0, 30, (2, 9))

    def losses(change):
        model = GPT(config, seed=4)
        for parameter in model.parameters():
            parameter.data = Parameter(change(parameter.data)).data
        model.load_state_dict({name: change(array) for name, array in GPT(config, seed=5).state_dict().items()})
        flat = FlatBuffers(model)
        optimizer = Adam(flat)
        for _ in range(2):
            flat.zero_grad()
            loss = model.loss(change(ids[:, :-1]), change(ids[:, 1:]))
            loss.backward()
            optimizer.step(1e-2)
        return loss.item(), model(change(ids[:, :-1]))[0].numpy()

    with kernels(mode):
        (loss, logits), (expected_loss, expected) = losses(change), losses(np.copy)
    assert loss == pytest.approx(expected_loss, abs=1e-6) and np.allclose(logits, expected, atol=1e-5)
