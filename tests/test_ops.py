"""Every op of the registry, on every sample: nobody has to remember to test a new op (design: registry x samples)."""

import pathlib

import numpy as np
import pytest
from kernel_checks import (
    check_contract,
    check_parity,
    cotangent,
    has_gradient,
    is_float,
    joined,
    reference_ops,
    run,
    stacked,
)
from samples import SAMPLES, sample

import ops
from tinygrad2.dispatch import KERNELS, OPS, choose, kernels
from tinygrad2.function import Function
from tinygrad2.grad_check import gradcheck
from tinygrad2.tensor import Tensor, apply, no_grad

REFERENCE = reference_ops(OPS)
CASES = [
    pytest.param(name, s, id=f"{name}-{i}") for name in sorted(REFERENCE) for i, s in enumerate(SAMPLES.get(name, ()))
]
WITH_GRADIENT = [case for case in CASES if has_gradient(REFERENCE[case.values[0]])]
FAST = [(name, backend, kernel) for (name, backend), ks in KERNELS.items() for kernel in ks if name in REFERENCE]


def tensors(sample, dtype):
    return [Tensor(a, requires_grad=is_float(a)) if isinstance(a, np.ndarray) else a for a in sample.arrays(dtype)]


def test_every_op_has_samples():
    assert set(REFERENCE) == set(SAMPLES)


def test_every_module_of_ops_holds_one_op_or_is_a_known_helper():
    files = {path.stem for path in pathlib.Path(ops.__file__).parent.glob("*.py")}
    helpers = {"__init__", "bfloat16", "broadcast", "erf", "products"}
    assert files - helpers == {op.__module__.split(".")[-1] for op in REFERENCE.values()}


def test_every_op_is_exported_as_a_function_and_documents_its_formula():
    for name, op in REFERENCE.items():
        assert callable(getattr(ops, name)) and name in ops.__all__
        assert "out" in op.__doc__ or "loss" in op.__doc__ or "p_i" in op.__doc__


@pytest.mark.parametrize("name, sample", WITH_GRADIENT)
def test_gradient_is_right_in_float64(name, sample):
    def fn(*args):
        return joined(apply(REFERENCE[name], *args, **sample.options))

    arrays = [a if isinstance(a, np.ndarray) else None for a in sample.arrays(np.float64)]
    fixed = {i: a for i, a in enumerate(sample.inputs) if arrays[i] is None}  # scalars and None
    report = gradcheck(
        lambda *args: fn(*(fixed.get(i, a) for i, a in enumerate(args))),
        arrays,
    )
    assert report
    assert len(report.inputs) == sum(is_float(a) for a in arrays)


@pytest.mark.parametrize("name, sample", [case for case in WITH_GRADIENT if case.values[0] != "cast"])
def test_float32_in_float32_out(name, sample):
    inputs = tensors(sample, np.float32)
    out = joined(apply(REFERENCE[name], *inputs, **sample.options))
    out.backward(cotangent(out.data))
    assert out.dtype == np.float32
    assert all(t.grad.dtype == np.float32 for t in inputs if isinstance(t, Tensor) and t.requires_grad)


@pytest.mark.parametrize("name, sample", CASES)
def test_inputs_and_dout_are_left_alone(name, sample):
    arrays = sample.arrays(np.float32)
    before = [a.copy() if isinstance(a, np.ndarray) else a for a in arrays]
    for a in arrays:
        if isinstance(a, np.ndarray):
            a.flags.writeable = False
    node = REFERENCE[name](np, [is_float(a) for a in arrays])
    out, several = stacked(node.forward(*arrays, **sample.options))
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before) if a is not None)
    if not has_gradient(REFERENCE[name]):
        return
    dout = cotangent(out)
    dout_before = dout.copy()
    dout.flags.writeable = False
    node.backward(tuple(dout) if several else dout)
    assert np.array_equal(dout, dout_before)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before) if a is not None)


@pytest.mark.parametrize("name, sample", WITH_GRADIENT)
def test_leaf_gradients_share_no_memory(name, sample):
    inputs = tensors(sample, np.float32)
    out = joined(apply(REFERENCE[name], *inputs, **sample.options))
    dout = cotangent(out.data)
    out.backward(dout)
    arrays = [t.grad for t in inputs if isinstance(t, Tensor) and t.requires_grad] + [dout]
    for i, a in enumerate(arrays):
        assert not any(np.shares_memory(a, b) for b in arrays[i + 1 :])


@pytest.mark.parametrize("name, sample", CASES)
def test_memory_layout_does_not_matter(name, sample):
    arrays = sample.arrays(np.float64)
    packed = [np.ascontiguousarray(a).reshape(a.shape) if is_float(a) else a for a in arrays]
    out, dout, gradients = run(REFERENCE[name], arrays, sample.options)
    packed_out, _, packed_gradients = run(REFERENCE[name], packed, sample.options, dout)
    for got, expected in zip([out, *gradients], [packed_out, *packed_gradients]):
        assert got is None or np.allclose(got, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name, sample", CASES)
def test_without_gradients_nothing_is_saved(name, sample):
    arrays = sample.arrays(np.float32)
    node = REFERENCE[name](np, [False] * len(arrays))
    node.forward(*arrays, **sample.options)
    assert node.saved == ()
    with no_grad():
        out = joined(apply(REFERENCE[name], *tensors(sample, np.float32), **sample.options))
    assert out.node is None and not out.requires_grad


@pytest.mark.parametrize("name, backend, kernel", FAST)
def test_kernels_match_their_reference(name, backend, kernel, monkeypatch):
    if kernel.__name__ == "ChunkedLinearCrossEntropyCPU":
        monkeypatch.setitem(kernel.supports.__func__.__globals__, "LOGITS_CHUNK", 1 << 14)  # bytes
    if backend == "numpy":
        assert any([check_parity(kernel, REFERENCE[name], s) for s in SAMPLES[name]]), "no sample is supported"
        for s in SAMPLES[name]:
            check_contract(kernel, REFERENCE[name], s)


# -- the machinery for kernels, tested with a toy op and kernels of it -----------------------------------------------


class Cube(Function):
    """out = x^3; a toy for the tests below."""

    def forward(self, x):
        self.save(x)
        return x * x * x

    def backward(self, dout):
        (x,) = self.saved
        return (3 * dout * x * x,)


@pytest.fixture
def make_kernel():
    """Makes kernels of Cube that are removed after the test."""

    def make(**methods):
        return type("CubeCPU", (Cube,), methods, backend="numpy")

    yield make
    KERNELS.pop(("cube", "numpy"), None)


def test_a_kernel_is_chosen_where_it_supports_the_arrays(make_kernel):
    fast = make_kernel(supports=classmethod(lambda cls, x: x.dtype == np.float32))
    x = np.ones(3, np.float32)
    assert choose(Cube, np, [x]) is fast
    assert choose(Cube, np, [x.astype(np.float64)]) is Cube
    with kernels("reference"):
        assert choose(Cube, np, [x]) is Cube
    assert choose(Cube, np, [x]) is fast


def test_the_newest_kernel_goes_first(make_kernel):
    make_kernel()
    newest = make_kernel()
    assert choose(Cube, np, [np.ones(3)]) is newest


def test_parity_and_contract_accept_a_right_kernel(make_kernel):
    right = make_kernel(forward=lambda self, x: (self.save(x), x**3)[1])
    s = sample((7, 33))
    assert check_parity(right, Cube, s) and check_contract(right, Cube, s)


def test_parity_refuses_a_wrong_kernel(make_kernel):
    wrong = make_kernel(forward=lambda self, x: (self.save(x), x**3 * 1.00001)[1])
    with pytest.raises(AssertionError):
        check_parity(wrong, Cube, sample((7, 33)))


def test_contract_refuses_a_kernel_that_saves_something_else(make_kernel):
    wrong = make_kernel(forward=lambda self, x: (self.save(x * x), x**3)[1])
    with pytest.raises(AssertionError):
        check_contract(wrong, Cube, sample((7, 33)))


def test_unknown_kernel_mode_is_refused():
    with pytest.raises(ValueError, match="'auto' or 'reference', not 'fast'"):
        with kernels("fast"):
            pass


# -- what the docstrings of single ops promise -----------------------------------------------------------------------


def test_softmax_survives_large_scores():
    p = ops.softmax(Tensor([[1e4, 1e4, -1e4], [-1e30, 0.0, 1e30]])).numpy()
    assert np.allclose(p, [[0.5, 0.5, 0], [0, 0, 1]])


def test_log_softmax_and_cross_entropy_survive_large_scores():
    x = Tensor([[1e4, 0.0], [-1e4, 1e4]])
    assert np.allclose(ops.log_softmax(x).numpy(), [[0, -1e4], [-2e4, 0]])
    assert ops.cross_entropy(x, np.array([1, 1])).item() == pytest.approx(5e3)


def test_cross_entropy_of_ignorance_is_ln_V():
    loss = ops.cross_entropy(Tensor(np.zeros((4, 50257), np.float32)), np.arange(4))
    assert loss.item() == pytest.approx(np.log(50257), rel=1e-6)


def test_cross_entropy_with_all_targets_ignored_is_zero_and_teaches_nothing():
    logits = Tensor(np.ones((2, 3), np.float32), requires_grad=True)
    loss = ops.cross_entropy(logits, np.array([-1, -1]))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_attention_does_not_see_the_future_even_at_huge_scores():
    rng = np.random.default_rng(0)
    q, k, v = (1e3 * rng.standard_normal((6, 4)) for _ in range(3))
    out = ops.attention(Tensor(q), Tensor(k), Tensor(v)).numpy()
    k[4:], v[4:] = 1e6, -1e6
    changed = ops.attention(Tensor(q), Tensor(k), Tensor(v)).numpy()
    assert np.array_equal(out[:4], changed[:4]) and not np.array_equal(out[4:], changed[4:])


@pytest.mark.parametrize("bad, message", [(7, "token id 7 .* vocabulary of 7"), (-2, "token id -2 .* vocabulary of 7")])
def test_ids_outside_the_vocabulary_are_named(bad, message):
    with pytest.raises(IndexError, match=message):
        ops.embedding(Tensor(np.zeros((7, 2), np.float32)), np.array([0, bad, 3]))
    with pytest.raises(IndexError, match=message):
        ops.cross_entropy(Tensor(np.zeros((3, 7), np.float32)), np.array([0, bad, 3]))


def test_ids_must_be_integers():
    with pytest.raises(TypeError, match="must be integers, not float32"):
        ops.embedding(Tensor(np.zeros((7, 2), np.float32)), np.zeros(3, np.float32))


def test_dropout_keeps_the_mean_and_the_fraction():
    x = np.ones(100_000, np.float32)
    out = ops.dropout(Tensor(x), 0.3, key=5).numpy()
    assert set(np.unique(out)) == {0, np.float32(1 / 0.7)}
    assert abs((out == 0).mean() - 0.3) < 0.01 and abs(out.mean() - 1) < 0.01


def test_dropout_masks_depend_on_key_and_position_alone():
    x = Tensor(np.ones((4, 10), np.float32))
    full = ops.dropout(x, 0.5, key=9).numpy()
    assert np.array_equal(full[2:], ops.dropout(x[2:], 0.5, key=9, first=20).numpy())
    assert not np.array_equal(full, ops.dropout(x, 0.5, key=10).numpy())


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5])
def test_dropout_refuses_impossible_fractions(p):
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\)"):
        ops.dropout(Tensor([1.0]), p, key=0)


def test_erf_equals_the_standard_library():
    import math

    from ops.erf import erf

    x = np.concatenate([np.linspace(-7, 7, 20001), [0.0, -0.0, 1e-300, 40, -40]])
    assert np.abs(erf(np, x) - [math.erf(v) for v in x]).max() < 1e-14


def test_the_two_gelus_differ_as_much_as_is_known():
    x = Tensor(np.linspace(-5, 5, 10001))
    assert np.abs(ops.gelu(x).numpy() - ops.gelu_erf(x).numpy()).max() == pytest.approx(4.73e-4, rel=1e-2)


def test_random_keys_and_numbers_are_spread():
    from tinygrad2.prng import make_key, mix, mix_int, uniform

    keys = {make_key(seed, step, layer) for seed in range(10) for step in range(10) for layer in range(10)}
    assert len(keys) == 1000 and make_key(1, 2) != make_key(2, 1)
    z = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)
    assert [int(v) for v in mix(z)] == [mix_int(int(v)) for v in z]
    u = np.stack([uniform(np, (4096,), make_key(7, k)) for k in range(16)])
    counts = np.histogram(u, bins=64, range=(0, 1))[0]
    assert u.min() >= 0 and u.max() < 1 and np.abs(counts / counts.mean() - 1).max() < 0.15
    assert np.abs(np.corrcoef(u) - np.eye(16)).max() < 0.08
