"""Activations that wait for backward in 16 bits (tinygrad2/saved16.py): their bits, their memory, what is shared."""

import contextlib
import gc
import threading
import weakref

import numpy as np
import pytest
from kernel_checks import joined
from samples import SAMPLES
from test_bfloat16 import numbers
from test_memory import CONFIG, kept_bytes

import ops
from models import GPT, GPTConfig
from models.dropout import set_dropout
from ops.bfloat16 import round_to_bfloat16
from tinygrad2 import Tensor, apply, no_grad
from tinygrad2.bfloat16 import pack_bfloat16, unpack_bfloat16
from tinygrad2.dispatch import KERNELS, OPS, kernels
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.function import observe
from tinygrad2.grad_check import gradcheck
from tinygrad2.mixed_precision import PACKED, mixed_precision
from tinygrad2.module import Parameter
from tinygrad2.precision import precision
from tinygrad2.recompute import recompute
from tinygrad2.saved16 import Packed, Saved16, pack
from tinygrad2.system.threads import POOL

NANS = np.uint32([0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF, 0x7FC00000, 0x7F80FFFF]).view(np.float32)
MODES = ["auto", "reference"] if ("pack_bfloat16", "numpy") in KERNELS else ["reference"]


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("mode", MODES)
def test_packing_rounds_every_kind_of_number_to_nearest(mode, threads, monkeypatch):
    monkeypatch.setattr(POOL, "threads", threads)
    x = np.tile(np.concatenate([NANS, numbers()]), 8)
    for n in (0, 1, 2, 1023, len(x)):
        with kernels(mode):
            packed = pack_bfloat16(x[:n])
            unpacked = unpack_bfloat16(packed)
        assert packed.dtype == np.uint16 and unpacked.dtype == np.float32
        expected = round_to_bfloat16(np, x[:n]).view(np.uint32)
        assert (packed == expected >> 16).all() and (unpacked.view(np.uint32) == expected).all()


@pytest.mark.parametrize("mode", MODES)
def test_rows_that_lie_apart_are_packed(mode):
    x = np.random.default_rng(0).standard_normal((300, 3, 257), dtype=np.float32)
    for rows in (x[:, 1], x[::2, 2], x[:1, 0], x[::-1, 0], x[:, 1, ::2], x[:0, 1], x[:, :, 5]):
        with kernels(mode):
            assert (pack_bfloat16(rows) == round_to_bfloat16(np, rows).view(np.uint32) >> 16).all()


LAYOUTS = {
    "contiguous": lambda x: x, "transposed": lambda x: x.T, "heads": lambda x: x.transpose(0, 2, 1),
    "a slice": lambda x: x[:, 1:3], "the last axis": lambda x: x[:, :, 2], "steps": lambda x: x[::2, :, ::3],
    "backwards": lambda x: x[::-1, :, ::-1], "one row again and again": lambda x: np.broadcast_to(x[0, 0], (4, 7)),
    "one number": lambda x: x[1, 2, 3, ...], "axes of one": lambda x: x[:, None, :1],
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_comes_back_has_the_values_shape_and_order_of_axes(name):
    x = LAYOUTS[name](np.random.default_rng(0).standard_normal((6, 5, 7), dtype=np.float32))
    x = np.asarray(x)
    saved = Saved16(x)
    back = saved.unpack()
    assert saved.nbytes == 2 * x.size
    assert back.shape == x.shape and back.dtype == np.float32 and (back == round_to_bfloat16(np, x)).all()
    assert back.flags.writeable and not np.shares_memory(back, x)
    wide = [i for i in range(x.ndim) if x.shape[i] > 1 and x.strides[i]]
    order = sorted(wide, key=lambda i: abs(x.strides[i]))
    assert order == sorted(wide, key=lambda i: back.strides[i])  # rows stay rows: kernels read them


def test_the_blocks_of_other_threads_do_not_count():
    seen = []
    with mixed_precision("bfloat16"):
        assert precision() == "bfloat16"
        thread = threading.Thread(target=lambda: seen.append(precision()))
        thread.start()
        thread.join()
        with mixed_precision("float32"):
            seen.append(precision())
    assert seen == ["highest", "highest"] and precision() == "highest"
    with pytest.raises(ValueError, match="not 'float64'"):
        mixed_precision("float64")


# -- ops -------------------------------------------------------------------------------------------------------------


def packed_samples():
    return [pytest.param(name, sample, id=f"{name} {i}") for name in PACKED if name in SAMPLES
            for i, sample in enumerate(SAMPLES[name])]  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name, sample", packed_samples())
def test_backward_of_rounded_activations_is_near_that_of_float32(name, sample, mode):
    arrays = sample.arrays(np.float32)
    with kernels(mode):
        expected = gradients(name, arrays, sample.options, "float32")
        got = gradients(name, arrays, sample.options, "bfloat16")
    for a, b in zip(got, expected):
        assert a.dtype == np.float32
        assert np.abs(a - b).max(initial=0) <= 0.02 * max(0.1, np.abs(b).max(initial=0))


def gradients(name, arrays, options, dtype):
    inputs = [Tensor(a.copy(), requires_grad=True) if is_float(a) else a for a in arrays]
    with mixed_precision(dtype):
        out = joined(apply(OPS[name], *inputs, **options))
        out.backward(np.random.default_rng(1).standard_normal(out.shape, dtype=np.float32))
    return [x.grad for x in inputs if isinstance(x, Tensor)]


def is_float(value):
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def test_every_op_of_the_table_exists():
    steps = {"weights", "gradients", "Adam"}
    assert set(PACKED) - steps <= set(OPS)


def test_float64_is_not_touched():
    rng = np.random.default_rng(0)
    x, w, b = rng.standard_normal((3, 4)), rng.standard_normal((4, 4)), rng.standard_normal(4)
    with mixed_precision("bfloat16"):
        out = ops.linear(Tensor(x, requires_grad=True), Tensor(w, requires_grad=True), Tensor(b, requires_grad=True))
        assert isinstance(out.node.saved, Packed) and out.node.saved[0] is x
        gradcheck(lambda x, w, b: ops.gelu(ops.layernorm(ops.linear(x, w, b), b, b)), [x, w, b])


def test_parameters_are_not_copied():
    w = Parameter(np.ones((4, 4), np.float32))
    x = Tensor(np.ones((2, 4), np.float32), requires_grad=True)
    with mixed_precision("bfloat16"):
        product, linear = ops.matmul(x, w).node, ops.linear(x, w).node
    for node in (product, linear):
        assert isinstance(node.saved[0], Saved16) and node.saved[1] is w.data


# -- what is shared --------------------------------------------------------------------------------------------------


def test_an_array_that_several_ops_save_is_packed_once():
    x = Tensor(np.random.default_rng(0).standard_normal((3, 5, 8), dtype=np.float32), requires_grad=True)
    weights = [Parameter(np.random.default_rng(i).standard_normal((8, 8), dtype=np.float32)) for i in range(3)]
    with mixed_precision("bfloat16"):
        y = x * 2.0
        q, k, v = (ops.linear(y, w) for w in weights)
        assert len({id(out.node.saved[0].bits) for out in (q, k, v)}) == 1
        q, k, v = ops.split_heads(ops.concatenate([q, k, v], axis=-1), 2)
        attended = ops.attention(q, k, v)
        out = ops.linear(ops.merge_heads(attended), weights[0])               # a view of what attention has returned
    saved = attended.node.saved[3] if MODES[0] == "auto" else None           # the reference keeps the weights instead
    assert saved is None or out.node.saved[0].bits is saved.bits
    with mixed_precision("bfloat16"):
        out.backward(np.ones(out.shape, np.float32))
    assert x.grad is not None


def test_what_is_shared_is_not_overwritten_by_a_backward_that_uses_its_memory():
    """The MLP's kernel writes into what it has saved."""
    rng = np.random.default_rng(0)
    x = Tensor(rng.standard_normal((6, 8), dtype=np.float32), requires_grad=True)
    w1, w2 = (Parameter(rng.standard_normal(s, dtype=np.float32)) for s in ((8, 32), (32, 8)))
    found = []
    for both in (False, True):
        x.grad = w1.grad = w2.grad = None
        with mixed_precision("bfloat16"):
            y = x * 1.0
            losses = [ops.mlp(y, w1, None, w2, None).sum() for _ in range(2)]
            if both:
                (losses[0] + losses[1]).backward()
            else:
                losses[0].backward()
        found.append([x.grad, w1.grad, w2.grad])
    for one, two in zip(*found):
        assert np.allclose(two, 2 * one, rtol=1e-5, atol=1e-5)


def test_a_write_in_place_ends_the_sharing():
    x = Tensor(np.full((4, 4), 3.0, np.float32), requires_grad=True)
    w = Parameter(np.eye(4, dtype=np.float32))
    with mixed_precision("bfloat16"):
        y = x * 1.0
        before = ops.linear(y, w)
        with no_grad():
            y.zero_()
        after = ops.linear(y, w)
        assert (before.node.saved[0].unpack() == 3).all() and (after.node.saved[0].unpack() == 0).all()
        before.sum().backward()                                               # a copy: nothing was lost
    assert (w.grad == 12).all()


def test_a_weight_that_was_changed_is_still_noticed():
    w = Parameter(np.eye(4, dtype=np.float32))
    with mixed_precision("bfloat16"):
        loss = ops.linear(Tensor(np.ones((4, 4), np.float32), requires_grad=True), w).sum()
        with no_grad():
            w *= 2.0
        with pytest.raises(RuntimeError, match="changed in place"):
            loss.backward()


def test_memory_that_is_used_again_is_not_mistaken_for_what_was_there():
    kept = []
    for value in range(50):
        x = np.full((64, 64), value, np.float32)                              # often where the last one was
        kept.append(Saved16(x))
        del x
    assert [int(saved.unpack()[0, 0]) for saved in kept] == list(range(50))


def test_backward_frees_the_bits_as_it_passes(no_collector):
    w = Parameter(np.eye(4, dtype=np.float32))
    x = Tensor(np.ones((4, 4), np.float32), requires_grad=True)
    with mixed_precision("bfloat16"):
        out = ops.linear(x * 1.0, w)
        bits = weakref.ref(out.node.saved[0]._memory)
        assert bits() is not None
        out.sum().backward()
    assert bits() is None and out.node.saved == ()


# -- the model -------------------------------------------------------------------------------------------------------


IDS = np.random.default_rng(0).integers(0, 300, (6, 32))


def model_gradient(dtype, mode="auto", **changes):
    recompute = changes.pop("recompute", False)
    model = GPT(GPTConfig(**{**CONFIG, "n_layer": 3, "dropout": 0.1, **changes}), seed=1, recompute=recompute)
    flat = FlatBuffers(model)
    set_dropout(model, 1, 0)
    with mixed_precision(dtype), kernels(mode):
        loss = model.loss(IDS, np.roll(IDS, 1))
        loss.backward()
    return loss.item(), flat.grad.copy()


@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_of_a_model_is_near_that_of_float32(mode):
    (loss, exact), (loss16, got) = model_gradient("float32", mode), model_gradient("bfloat16", mode)
    assert loss16 == pytest.approx(loss, rel=1e-3)
    assert 1e-5 < np.linalg.norm(got - exact) / np.linalg.norm(exact) < 0.02


@pytest.mark.parametrize("mode", MODES)
def test_recompute_returns_the_same_bits(mode):
    (loss, plain), (again, recomputed) = (model_gradient("bfloat16", mode, recompute=on) for on in (False, True))
    assert loss == again and plain.tobytes() == recomputed.tobytes()


def test_recompute_goes_on_in_the_precision_of_forward():
    """Also if backward is called outside of the block."""
    w = Parameter(np.random.default_rng(0).standard_normal((4, 4), dtype=np.float32))
    kept = []

    class Look:
        def before(self, node):
            kept.append(isinstance(node.saved, Packed))

        def after_forward(self, *_):
            kept.append(precision())

        after_backward = after_leaf = lambda self, *_: None

    x = Tensor(np.ones((2, 4), np.float32), requires_grad=True)
    with mixed_precision("bfloat16"):
        out = recompute(lambda x: ops.linear(x, w), x)
    with observe(Look()):
        out.sum().backward()
    assert True in kept and "bfloat16" in kept


@pytest.mark.parametrize("mode", MODES)
def test_observers_see_float32(mode):
    seen = []

    class Look:
        @staticmethod
        def inside(module):
            return contextlib.nullcontext()

        def after_backward(self, node, dout, dinputs):
            seen.extend(type(value) for value in node.saved)

        before = after_forward = after_leaf = lambda self, *_: None

    with observe(Look()):
        model_gradient("bfloat16", mode)
    assert seen and Saved16 not in seen


@pytest.mark.parametrize("mode", MODES)
def test_a_layer_keeps_half(mode):
    kept = {}
    for dtype in ("float32", "bfloat16"):
        totals = []
        for n_layer in (1, 3):
            model = GPT(GPTConfig(**{**CONFIG, "n_layer": n_layer}), seed=1)
            with kernels(mode), mixed_precision(dtype):
                totals.append(kept_bytes(model.loss(IDS, IDS), model))
        kept[dtype] = (totals[1] - totals[0]) / 2
    assert 0.5 <= kept["bfloat16"] / kept["float32"] < 0.52


def test_a_node_without_activations_is_left_alone():
    x = Tensor(np.ones(3, np.float32), requires_grad=True)
    with mixed_precision("bfloat16"):
        out = x.exp()
    assert type(out.node.saved) is tuple and pack(out.node) is out.node.saved
