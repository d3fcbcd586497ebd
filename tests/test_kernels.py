"""All CPU kernels together: training with them, and what they do with NaN, memory and threads.

That each of them computes what its reference implementation computes is shown in test_ops.py, for every op on every
sample.
"""

import gc
import importlib
import json
import os
import pathlib
import pkgutil
import resource
import subprocess
import sys

import numpy as np
import pytest
from kernel_checks import is_float, run, stacked
from samples import SAMPLES

import ops
from models import GPT, GPTConfig
from models.dropout import set_dropout
from tinygrad2 import Function, Tensor, apply
from tinygrad2.deferred import DeferredGradient
from tinygrad2.dispatch import KERNELS, OPS, choose, kernels
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.module import Parameter
from tinygrad2.optim import Adam, adam_update, clip_scale, grad_norm
from tinygrad2.system.threads import POOL

pytest.importorskip("numba", reason="Numba is not installed: there are no CPU kernels")

from ops.kernels.cpu import linear_cross_entropy, workspace  # noqa: E402
from ops.kernels.cpu.blas_gemm import gemm  # noqa: E402

SMALL = GPTConfig(block_size=32, vocab_size=97, n_layer=2, n_head=4, n_embd=32, dropout=0.1)


def train(config, steps, mode, B=4, micro=2, threads=None, seed=3, lr=1e-3):
    """(losses, norms, the final parameters) of some steps with dropout, accumulation, decay and clipping."""
    before = POOL.threads
    POOL.resize(threads or before or 2)
    with kernels(mode):
        model = GPT(config, seed=seed)
        flat = FlatBuffers(model)
        optimizer = Adam(flat, betas=(0.9, 0.95), weight_decay=0.1)
        rng = np.random.default_rng(0)
        losses, norms = [], []
        for step in range(steps):
            counting = rng.integers(0, config.vocab_size, (B, 1)) + 3 * np.arange(config.block_size + 1)
            tokens = counting % config.vocab_size
            flat.zero_grad()
            total = 0.0
            for first in range(0, B, micro):
                rows = tokens[first : first + micro]
                set_dropout(model, 7, step, first)
                loss = model.loss(rows[:, :-1], rows[:, 1:]) * (micro / B)
                loss.backward()
                total += loss.item()
            norm = grad_norm(flat.grad)
            optimizer.step(lr, clip_scale(norm, 1.0))
            losses.append(total)
            norms.append(float(norm))
    POOL.resize(before)
    return np.array(losses), np.array(norms), flat.data


# -- training --------------------------------------------------------------------------------------------------------


CONFIGS = {
    "with dropout": {},
    "without": {"dropout": 0.0},
    "no biases, untied head": {"bias": False, "tied_head": False, "dropout": 0.0},
    "exact gelu": {"activation": "gelu_erf"},
    "odd sizes": {"n_head": 3, "n_embd": 21, "block_size": 17, "vocab_size": 31},
}


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())
def test_fifty_steps_stay_with_the_reference(changes):
    config = GPTConfig(**{**SMALL.to_dict(), **changes})
    fast, slow = (train(config, 50, mode) for mode in ("auto", "reference"))
    assert np.abs(fast[0] - slow[0]).max() < 1e-4
    assert fast[1] == pytest.approx(slow[1], rel=1e-3)
    assert fast[0][-5:].mean() < fast[0][:5].mean()


def test_every_op_of_a_training_step_has_a_kernel():
    """But for the views and the scalars, which cost nothing."""
    used = set()
    before = choose.__globals__["KERNELS"]
    assert before is KERNELS

    def spy(op, xp, arrays):
        used.add((op.name, choose(op, xp, arrays) is not op))
        return choose(op, xp, arrays)

    import tinygrad2.tensor

    original, tinygrad2.tensor.choose = tinygrad2.tensor.choose, spy
    try:
        train(GPTConfig(**{**SMALL.to_dict(), "block_size": 32}), 1, "auto")
    finally:
        tinygrad2.tensor.choose = original
    slow = {name for name, fast in used if not fast}
    assert slow <= {"add", "mul", "merge_heads"}  # add: small here, see AddCPU.supports
    assert {"mlp", "attention", "linear", "layernorm", "add_layernorm", "linear_cross_entropy", "embedding", "dropout",
            "split_heads"} <= {name for name, fast in used if fast}  # fmt: skip


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_number_of_threads_computes_the_same_bits(threads):
    first, second = (train(SMALL, 8, "auto", threads=threads) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second))


def test_another_number_of_threads_trains_the_same():
    one, three = (train(SMALL, 8, "auto", threads=threads) for threads in (1, 3))
    assert np.abs(one[0] - three[0]).max() < 1e-5


@pytest.mark.parametrize("mode", ["auto", "reference"])
def test_recomputing_computes_the_same_bits(mode):
    results = []
    for again in (False, True):
        with kernels(mode):
            model = GPT(SMALL, seed=0, recompute=again)
            set_dropout(model, 7, 0)
            x, y = (np.random.default_rng(i).integers(0, 97, (2, 32)) for i in range(2))
            loss = model.loss(x, y)
            loss.backward()
            results.append([loss.item(), *(p.grad for p in model.parameters())])
    assert all(np.array_equal(a, b) for a, b in zip(*results))


def test_recomputing_keeps_the_inputs_of_blocks_only():
    from test_models import held_by

    model = GPT(GPTConfig(**{**SMALL.to_dict(), "n_layer": 6, "dropout": 0.0}), seed=0)
    x = np.random.default_rng(0).integers(0, 97, (4, 32))
    _, all_activations = held_by(lambda: model.hidden(x))
    model.recompute = True
    _, inputs = held_by(lambda: model.hidden(x))
    unit = 4 * 32 * 32 * 4  # bytes of one (B, T, C)
    assert inputs < 12 * unit < 60 * unit < all_activations


@pytest.mark.parametrize("t", [1, 1000])
def test_adam_in_one_pass_equals_its_reference(t):
    rng = np.random.default_rng(0)
    p, g, m, v = (rng.standard_normal(200_003).astype(np.float32) for _ in range(4))
    v = np.abs(v)
    results = []
    for mode in ("auto", "reference"):
        with kernels(mode):
            own = [p.copy(), g.copy(), m.copy(), v.copy()]
            adam_update(*own, np.float32(0.3), t, 1e-3, 0.9, 0.95, 1e-8, 0.1)
            results.append([*own, grad_norm(g)])
    for name, fast, reference in zip("pgmvn", *results):
        assert fast.dtype == np.float32
        assert np.allclose(fast, reference, rtol=2e-6, atol=1e-7), name
    assert float(results[0][4]) == pytest.approx(np.linalg.norm(g.astype(np.float64)), rel=1e-7)


# -- NaN and accuracy ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({name for name, backend in KERNELS if backend == "numpy" and name in OPS}))
def test_nan_stays_nan(name):
    """A kernel that loses a NaN on the way would let a diverged training go on."""
    tried = 0
    for sample in SAMPLES[name]:
        arrays = sample.arrays(np.float32)
        kernel = choose(OPS[name], np, arrays)
        if kernel is OPS[name] or not is_float(arrays[0]) or not arrays[0].size or name in ("dropout", "embedding"):
            continue
        spoiled = arrays[0].copy()
        spoiled.reshape(-1)[0] = np.nan  # the first element: in attention every later query sees it
        node = kernel(np, [is_float(a) for a in arrays])
        out, _ = stacked(node.forward(spoiled, *arrays[1:], **sample.options))
        assert np.isnan(out).any()
        tried += 1
    assert tried or name in ("dropout", "embedding")


def test_a_diverged_training_shows():
    with np.errstate(all="ignore"):
        losses, norms, _ = train(GPTConfig(**{**SMALL.to_dict(), "dropout": 0.0}), 40, "auto", lr=1e6)
    assert not np.isfinite(losses[-1] + norms[-1])


@pytest.mark.parametrize("low, high", [(-60, 60), (-1, 1), (80, 88)])
def test_exp32_is_as_accurate_as_documented(low, high):
    from ops.kernels.cpu.fast_math import exp32
    from ops.kernels.cpu.numba_jit import jit

    @jit
    def exp_all(x, out):
        for i in range(x.size):
            out[i] = exp32(x[i])

    x = np.linspace(low, high, 200_001).astype(np.float32)
    out = np.empty_like(x)
    exp_all(x, out)
    assert np.abs(out / np.exp(x.astype(np.float64)) - 1).max() < 5e-7


# -- gradients that are written where they belong --------------------------------------------------------------------


class Double(Function):
    """out = 2 x, with a deferred gradient; a toy."""

    def forward(self, x):
        return 2 * x

    def backward(self, dout):
        def write_to(out, accumulate):
            out[...] = 2 * dout + (out if accumulate else 0)

        return (DeferredGradient(self.xp, dout.shape, dout.dtype, write_to),)


@pytest.fixture(autouse=True)
def forget_toys():
    yield
    OPS.pop("double", None)
    OPS["double"] = Double


def test_deferred_gradients_reach_leaves_and_other_nodes():
    leaf = Tensor(np.ones(3, np.float32), requires_grad=True)
    (apply(Double, leaf) + apply(Double, apply(Double, leaf)) + leaf).sum().backward()
    assert leaf.grad.tolist() == [7, 7, 7]
    leaf.zero_grad()
    apply(Double, leaf).sum().backward()
    assert leaf.grad.tolist() == [2, 2, 2]


@pytest.mark.parametrize("plain_first", [False, True])
def test_a_deferred_gradient_is_added_to_what_has_arrived_before(plain_first):
    """In one pass to an array of somebody else, in place to a sum of ours."""
    calls = []

    class Noted(Double):
        def backward(self, dout):
            def write_to(out, accumulate):
                calls.append("accumulate" if accumulate else "write")
                out[...] = 2 * dout + (out if accumulate else 0)

            def plus(array):
                calls.append("plus")
                return array + 2 * dout

            return (DeferredGradient(self.xp, dout.shape, dout.dtype, write_to, plus),)

    leaf = Tensor(np.ones(3, np.float32), requires_grad=True)
    x = leaf * 5.0
    terms = [x * 7.0, apply(Noted, x), apply(Noted, x)]           # walked back from the last one on
    a, b, c = reversed(terms) if plain_first else terms
    (a + b + c).sum().backward()
    assert leaf.grad.tolist() == [55, 55, 55]
    assert calls == (["plus", "accumulate"] if plain_first else ["write", "accumulate"])


def test_zeroed_gradients_read_as_zero():
    p = Parameter(np.ones(3, np.float32))
    p.zero_grad()
    assert p.grad is None
    (p * 3.0).sum().backward()
    memory = p.grad
    p.zero_grad()
    assert memory.tolist() == [3, 3, 3]  # not touched yet
    assert p.grad is memory and memory.tolist() == [0, 0, 0]
    p.zero_grad()
    (p * 5.0).sum().backward()
    (p * 1.0).sum().backward()
    assert p.grad is memory and memory.tolist() == [6, 6, 6]


def test_flat_gradients_of_parameters_that_took_no_part_are_zero():
    model = GPT(SMALL, seed=0)
    flat = FlatBuffers(model)
    flat.grad[:] = 7.0
    flat.zero_grad()
    model.wpe(np.arange(3)).sum().backward()
    grad = flat.grad
    rows = grad[flat.slices["wpe.weight"]].reshape(32, 32)
    assert (rows[:3] == 1).all() and not rows[3:].any()
    assert not np.delete(grad, np.arange(grad.size)[flat.slices["wpe.weight"]]).any()


# -- head and loss, in chunks ----------------------------------------------------------------------------------------


@pytest.fixture
def chunks(monkeypatch):
    monkeypatch.setattr(linear_cross_entropy, "LOGITS_CHUNK", 5 * 31 * 4)  # five rows of 31 logits


def head_and_loss(mode, use):
    """The result of use(x, weight, y) and all gradients, by kernels or reference implementations."""
    rng = np.random.default_rng(0)
    with kernels(mode):
        x = Tensor(rng.standard_normal((3, 7, 8)).astype(np.float32), requires_grad=True)
        weight = Parameter(rng.standard_normal((31, 8)).astype(np.float32))
        weight.grad = np.full((31, 8), 9.0, np.float32)
        weight.zero_grad()
        y = rng.integers(-1, 31, (3, 7))
        value = use(x, weight, y)
    return [np.asarray(value), x.grad, weight.grad]


def once(x, weight, y):
    loss = ops.linear_cross_entropy(x, weight, y) * 0.25
    loss.backward()
    return loss.item()


def micro_batches(x, weight, y):
    return [once(x[i : i + 1], weight, y[i : i + 1]) for i in range(3)]


def two_losses_at_once(x, weight, y):
    """The second forward borrows the same memory as the first, and both gradients must still be right."""
    loss = ops.linear_cross_entropy(x, weight, y) + ops.linear_cross_entropy(x * 2.0, weight, y)
    loss.backward()
    return loss.item()


def another_gradient_comes_first(x, weight, y):
    loss = ops.linear_cross_entropy(x, weight, y)
    (weight * 3.0).sum().backward()
    loss.backward()
    return loss.item()


def grad_is_read_in_between(x, weight, y):
    loss = ops.linear_cross_entropy(x, weight, y)
    assert not weight.grad.any()
    loss.backward()
    return loss.item()


def embedding_and_head(x, weight, y):
    """Tied, as in GPT-2."""
    loss = ops.linear_cross_entropy(x + ops.embedding(weight, np.abs(y)), weight, y)
    loss.backward()
    return loss.item()


def not_used(x, weight, y):
    ops.linear_cross_entropy(x, weight, y)
    (x * 1.0).sum().backward()
    return 0.0


def through_a_transpose(x, weight, y):
    loss = ops.linear_cross_entropy(x, weight.T.T, y)
    loss.backward()
    return loss.item()


@pytest.mark.parametrize(
    "use",
    [once, micro_batches, two_losses_at_once, another_gradient_comes_first, grad_is_read_in_between,
     embedding_and_head, not_used, through_a_transpose],
)  # fmt: skip
def test_head_and_loss_in_chunks_equal_their_reference(use, chunks):
    for fast, reference in zip(head_and_loss("auto", use), head_and_loss("reference", use)):
        assert np.allclose(fast, reference, rtol=1e-4, atol=1e-6)


def test_no_array_of_all_logits_is_made(chunks, monkeypatch):
    shapes = []
    original = linear_cross_entropy.Lease

    def spy(*shape):
        shapes.append(shape)
        return original(*shape)

    monkeypatch.setattr(linear_cross_entropy, "Lease", spy)
    head_and_loss("auto", once)
    assert shapes == [(5, 31)]


# -- memory ----------------------------------------------------------------------------------------------------------


def test_the_memory_of_a_deleted_lease_is_used_again():
    lease = workspace.Lease(1000, 1003)
    address = lease.array.ctypes.data
    other = workspace.Lease(1000, 1003)
    assert other.array.ctypes.data != address
    del lease
    again = workspace.Lease(1003, 999)
    assert again.array.ctypes.data == address and again.array.shape == (1003, 999)
    del other, again
    for n in range(1, 20):
        workspace.Lease(n * 5000)
    assert len(workspace._kept) <= workspace._MOST


def test_the_steady_state_takes_no_new_memory():
    """Once warm, a step takes next to no memory pages from the system: its arrays reuse those of the step before."""
    from tinygrad2.system.memory import keep_freed_memory

    config = GPTConfig(block_size=128, vocab_size=512, n_layer=2, n_head=4, n_embd=128)
    model = GPT(config, seed=0)
    flat = FlatBuffers(model)
    optimizer = Adam(flat)
    keep_freed_memory()
    x, y = (np.random.default_rng(i).integers(0, 512, (8, 128)) for i in range(2))

    def step():
        flat.zero_grad()
        model.loss(x, y).backward()
        optimizer.step(1e-3)

    for _ in range(5):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        step()
    faults = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10
    pages = 8 * 128 * 128 * 4 * 24 / 4096  # of the activations alone, about 3,000
    assert faults < pages / 20


# -- products --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("M, K, N", [(1, 1, 1), (3, 5, 7), (300, 128, 257), (129, 2048, 130), (2048, 64, 33)])
@pytest.mark.parametrize("layout", ["plain", "a transposed", "b transposed", "both"])
@pytest.mark.parametrize("add, scale", [(False, 1.0), (True, 1.0), (False, 0.5), (True, -2.0)])
def test_gemm_equals_numpy(M, K, N, layout, add, scale):
    rng = np.random.default_rng(0)
    a, b, out = (rng.standard_normal(shape).astype(np.float32) for shape in ((M, K), (K, N), (M, N)))
    expected = scale * (a.astype(np.float64) @ b) + (out if add else 0)
    a = np.asfortranarray(a) if layout in ("a transposed", "both") else a
    b = np.asfortranarray(b) if layout in ("b transposed", "both") else b
    assert gemm(a, b, out, add, scale) is out
    assert np.abs(out - expected).max() < 1e-5 * K**0.5 * max(1, abs(scale))


def test_gemm_works_without_openblas(monkeypatch):
    from ops.kernels.cpu import blas_gemm

    monkeypatch.setattr(blas_gemm, "available", False)
    a, b, out = np.ones((2, 3), np.float32), np.ones((3, 4), np.float32), np.ones((2, 4), np.float32)
    assert (gemm(a, b, out, add=True, scale=2.0) == 7).all() and (gemm(a, b, out) == 3).all()


def test_backward_of_split_heads_copies_nothing_where_attention_wrote_side_by_side():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 3, 5, 4)).astype(np.float32) for _ in range(3))
    kernel = choose(OPS["attention"], np, [q, k, v])
    _, _, parts = run(kernel, [q, k, v], {})
    reference = OPS["split_heads"](np, [True])
    split = choose(OPS["split_heads"], np, [q])(np, [True])
    (packed,) = split.backward(tuple(parts))
    assert np.shares_memory(packed, parts[0]) and np.array_equal(packed, reference.backward(tuple(parts))[0])
    for others in ((parts[0], parts[2], parts[1]), [p.copy() for p in parts], (q, k, v)):
        (copied,) = split.backward(tuple(others))
        assert not np.shares_memory(copied, others[0]) and np.array_equal(copied, reference.backward(tuple(others))[0])


# -- ops with several results ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("used", [(0,), (2,), (0, 1), (0, 1, 2), (1, 1)], ids=str)
def test_an_unused_result_gets_zeros(used, mode_of_split):
    with kernels(mode_of_split):
        x = Tensor(np.arange(12.0, dtype=np.float32).reshape(1, 2, 6), requires_grad=True)
        y = x * 2.0  # not a leaf
        parts = ops.split_heads(y, 1)
        total = sum((parts[i] * (i + 1.0)).sum() for i in used)
        total.backward()
    expected = [2.0 * sum(i + 1.0 for i in used if i == part) for part in range(3)]
    assert x.grad.tolist() == [[[e for e in expected for _ in range(2)]] * 2]


@pytest.fixture(params=["auto", "reference"])
def mode_of_split(request):
    return request.param


def test_a_second_walk_through_one_of_several_results_is_refused():
    x = Tensor(np.ones((1, 2, 6), np.float32), requires_grad=True)
    a, b, _ = ops.split_heads(x * 1.0, 2)
    a.sum().backward()
    with pytest.raises(RuntimeError, match="backward\\(\\) was already called through this"):
        b.sum().backward()


def test_several_results_leave_nothing_to_the_collector(no_collector):
    for _ in range(3):
        x = Tensor(np.ones((1, 2, 6), np.float32), requires_grad=True)
        a, b, c = ops.split_heads(x, 2)
        (a * b + c).sum().backward()
        del x, a, b, c
    assert gc.collect() == 0


def test_the_cache_of_a_kernel_depends_on_the_sources_of_all():
    """Numba alone would keep an old exp32 inside kernels whose own files have not changed."""
    from ops.kernels.cpu import gelu, kernel_cache, softmax

    stamps = {kernel._cache._cache_file._source_stamp for kernel in (gelu._forward, softmax._forward)}
    assert stamps == {kernel_cache._stamp()} and len(kernel_cache._stamp()[0]) == 64


@pytest.fixture
def files_of_a_kernel(tmp_path):
    from numba.core.caching import IndexDataCacheFile

    from ops.kernels.cpu import kernel_cache

    def make():
        file = IndexDataCacheFile(str(tmp_path), "kernel-1.py311", ("stamp", 0))
        kernel_cache._one_pair_per_key(file)
        return file

    return make


def test_hosts_that_compile_at_once_into_one_folder_do_not_load_each_others_code(files_of_a_kernel, monkeypatch):
    """One host has read the index when the other one had not written it yet."""
    first, second = files_of_a_kernel(), files_of_a_kernel()
    first.save(("float32", "znver3"), "code for znver3")
    with monkeypatch.context() as patch:
        patch.setattr(type(second), "_load_index", lambda self: {})
        second.save(("float32", "skylake"), "code for skylake")
        second.save(("int8", "znver3"), "code for int8")
    for file in (first, second, files_of_a_kernel()):
        assert file.load(("float32", "znver3")) == "code for znver3"
        assert file.load(("float32", "skylake")) == "code for skylake"
        assert file.load(("int8", "znver3")) == "code for int8"
        assert file.load(("int8", "skylake")) is None


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80", None])
@pytest.mark.parametrize("ending", [".nbi", ".nbc"])
def test_code_on_disk_that_cannot_be_read_is_compiled_again(files_of_a_kernel, tmp_path, ending, content):
    file = files_of_a_kernel()
    file.save("key", "code")
    assert file.load("key") == "code"
    (path,) = tmp_path.glob("*" + ending)
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    assert file.load("key") is None


# -- the same bits from the first process on --------------------------------------------------------------------------

_BITS = """
import hashlib, json, sys
import numpy as np
from kernel_checks import run
from samples import SAMPLES, sample
from ops.kernels.cpu import attention, skinny_gemm
from tinygrad2.dispatch import KERNELS
from tinygrad2.system.threads import POOL

POOL.resize(2)
work = {}
for (name, library), found in KERNELS.items():
    if library != "numpy":
        continue
    for i, one in enumerate(SAMPLES.get(name, ())):
        work[f"{name} {i}"] = name, found[-1], one
for T in (64, 128, 200):
    for p in (0.0, 0.1):
        shape = (2, 2, T, 16)
        work[f"attention T={T} p={p}"] = "attention", attention.AttentionCPU, sample(shape, shape, shape, p=p, key=5)


def bits(arrays):
    return hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in arrays if a is not None)).hexdigest()


def compute(name, kernel, one):
    arrays = one.arrays(np.float32)
    if not kernel.supports(*arrays):
        return None
    out, _, gradients = run(kernel, arrays, one.options)
    return bits([out, *gradients])


order = list(work)
if sys.argv[1] == "backwards":
    order.reverse()
found = {name: compute(*work[name]) for name in order}
rng = np.random.default_rng(0)
x, weight = (rng.standard_normal(shape, dtype=np.float32) for shape in ((5, 300), (300, 500)))
found["skinny gemm"] = bits([skinny_gemm.product(x, weight, None, np.empty((5, 500), np.float32))])
hits = sum(attention._forward.stats.cache_hits.values())
print(json.dumps([hits, found], sort_keys=True))
"""


def test_a_process_that_compiles_computes_the_bits_of_one_that_loads(tmp_path):
    """And it does not matter in which order kernels are loaded."""
    here = pathlib.Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent)])
    env, found = {**os.environ, "PYTHONPATH": path, "NUMBA_CACHE_DIR": str(tmp_path)}, []
    for order in ("forwards", "forwards", "backwards"):
        command = [sys.executable, "-c", _BITS, order]
        process = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
        assert process.returncode == 0, process.stderr
        found.append(json.loads(process.stdout))
    hits, (first, second, third) = zip(*found)
    assert hits[0] == 0 and min(hits[1:]) > 0, "the first process should have compiled, the others loaded"
    assert len([value for value in first.values() if value]) > 80
    for later in (second, third):
        assert [name for name in first if first[name] != later[name]] == []


def test_importing_numba_leaves_standard_output_as_it_is(tmp_path):
    """With colorama installed, Numba would replace sys.stdout, and an escape sequence would follow the last line."""
    (tmp_path / "colorama.py").write_text(
        "from unittest.mock import MagicMock\n"
        "__version__, Fore, Style = '0.4.6', MagicMock(), MagicMock()\n"
        "init = reinit = deinit = lambda: print('initialised')\n"
    )
    path = os.pathsep.join([str(tmp_path), str(pathlib.Path(__file__).parent.parent)])
    shown = []
    for first in ("ops", "numba"):  # the second: a process in which something else imported Numba
        command = (f"import {first}, ops, os, numba; numba.core.errors.termcolor().errmsg('none');"
                   "print([name for name in os.environ if 'HIGHLIGHT' in name])")  # fmt: skip
        process = subprocess.run([sys.executable, "-c", command], env={**os.environ, "PYTHONPATH": path},
                                 capture_output=True, text=True, timeout=900)  # fmt: skip
        assert process.returncode == 0, process.stderr
        shown.append(process.stdout)
    assert shown[0] == "[]\n" and shown[1].startswith("initialised\n") and shown[1].endswith("\n[]\n")


def test_no_kernel_calls_another_kernel():
    """Two compiled copies of one function would compete for its name; see `helper` in numba_jit.py."""
    import ops.kernels.cpu as package

    modules = [importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    compiled = {f for module in modules for f in vars(module).values() if hasattr(f, "py_func")}
    assert len(compiled) > 30
    for function in compiled:
        code, names = function.py_func.__code__, function.py_func.__globals__
        for callee in (names.get(name) for name in code.co_names):
            if hasattr(callee, "py_func"):
                options = callee.targetoptions
                assert options.get("forceinline") or options.get("inline") == "always", (
                    f"{function.py_func.__qualname__} of {function.__module__} calls {callee.py_func.__qualname__}"
                )


@pytest.fixture
def told():
    """What the user is told about compiling."""
    from ops.kernels.cpu import kernel_cache

    lines, before = [], kernel_cache._announcer.not_kept
    kernel_cache.announce_compiling(lines.append)
    yield lines
    kernel_cache._announcer.not_kept = before
    kernel_cache.announce_compiling(None)


def doubled(x):
    return 2 * x


def test_where_nothing_can_be_written_the_user_is_told_why_kernels_are_compiled_again(monkeypatch, told):
    from numba.core import caching

    from ops.kernels.cpu.numba_jit import jit

    monkeypatch.setattr(caching.FunctionCache._impl_class, "_locator_classes", [])
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/some/folder")
    assert jit(doubled)(2.0) == 4
    assert len(told) == 1 and told[0].startswith("compiling CPU kernels (at every start: none of /some/folder, ")
    assert told[0].endswith("the environment variable NUMBA_CACHE_DIR names another folder)")


def test_a_full_disk_costs_the_kept_kernels_only(monkeypatch, told):
    from numba.core import caching

    from ops.kernels.cpu import kernel_cache
    from ops.kernels.cpu.numba_jit import jit

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)
    monkeypatch.setattr(kernel_cache, "_cached", [])
    kernel = jit(doubled)
    assert kernel(2.0) == 4 and kernel(np.float32(2)) == 4
    assert told[0] == "compiling CPU kernels (once)"
    reason = "[Errno 28] No space left on device"
    assert told[1:] == [f"note      compiled kernels cannot be kept ({reason}): every start will compile them"]


@pytest.mark.parametrize("op", ["gelu", "gelu_erf"])
def test_gelu_of_numbers_of_any_size(op):
    """x and slope 1 far above zero, 0 and 0 far below; alone, and inside an MLP whose other layer is the identity."""
    sizes = 10.0 ** np.arange(1.5, 38.5, 0.5).astype(np.float32)
    sizes = np.concatenate([sizes, [3.4e38, 12, 13, 30]])
    x = np.concatenate([sizes, -sizes, [1e-40, -1e-40, 0]]).astype(np.float32)
    exact = np.where(x > 1, x, np.where(x < -1, 0, x / 2)), np.where(x > 1, 1, np.where(x < -1, 0, 0.5))
    t = Tensor(x, requires_grad=True)
    out = getattr(ops, op)(t)
    out.backward(np.ones_like(x))
    for found, right in zip((out.data, t.grad), exact):
        np.testing.assert_allclose(found, right, rtol=1e-6, atol=1e-15)
    one, none = np.eye(1, dtype=np.float32), np.zeros(1, np.float32)
    t = Tensor(x[:, None], requires_grad=True)
    out = ops.mlp(t, one, none, one, none, op == "gelu_erf")
    out.backward(np.ones((len(x), 1), np.float32))
    for found, right in zip((out.data, t.grad), exact):
        np.testing.assert_allclose(found[:, 0], right, rtol=1e-6, atol=1e-15)
    assert np.isnan(getattr(ops, op)(np.full(40, np.nan, np.float32)).data).all()


def test_attention_of_numbers_whose_product_is_too_large():
    """3e38 times 1.2 is no float32, 3e38 / sqrt(8) times 1.2 is."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 2, 70, 8)).astype(np.float32) for _ in range(3))
    q[0, 1, [2, 66], 3], k[0, 1, :, 3] = 3e38, np.linspace(0.5, 1.5, 70)
    found = []
    for dtype in (np.float32, np.float64):
        tensors = [Tensor(x.astype(dtype), requires_grad=True) for x in (q, k, v)]
        out = ops.attention(*tensors)
        out.backward(np.ones_like(out.data))
        dq, dk, dv = (t.grad for t in tensors)
        assert np.isfinite(dk).all()                              # rounding errors of ds, times 3e38
        found.append([out.data, dq, dv])
    for single, double in zip(*found):
        np.testing.assert_allclose(single, double, atol=1e-5)
