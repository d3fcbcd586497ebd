"""The same program on CuPy. Without a GPU a strict stand-in (strict_cupy.py) shows that nothing is mixed."""

import contextlib
import json
import pathlib
import re
from types import SimpleNamespace

import numpy as np
import pytest
import strict_cupy
from kernel_checks import has_gradient, is_float, reference_ops, run, stacked
from samples import SAMPLES

import inference
import train_gpt2
from models import GPT, GPTConfig
from models.dropout import set_dropout
from tinygrad2 import Tensor, optim
from tinygrad2.backend import array_module, device_of, to_device, to_host, xp_of
from tinygrad2.dispatch import OPS, kernels
from tinygrad2.distributed.world import World
from tinygrad2.errors import UserError
from tinygrad2.flat_buffers import FlatBuffers
from tinygrad2.optim import Adam, clip_scale, grad_norm
from tinygrad2.system.gemm_peak import gemm_peak

REFERENCE = reference_ops(OPS)
CASES = [pytest.param(name, s, id=f"{name}-{i}") for name in sorted(REFERENCE) for i, s in enumerate(SAMPLES[name])]
TINY = GPTConfig(block_size=8, vocab_size=50, n_layer=2, n_head=2, n_embd=16, dropout=0.1)


@pytest.fixture(autouse=True)
def reference_only():
    """Bits are compared here, and kernels of the two backends round differently."""
    with kernels("reference"):
        yield


@pytest.fixture
def cupy(monkeypatch):
    return strict_cupy.install(monkeypatch)


def on_device(value, cupy):
    if isinstance(value, np.ndarray):
        return cupy.asarray(value)
    if isinstance(value, tuple):
        return tuple(on_device(v, cupy) for v in value)
    return value


@pytest.mark.parametrize("name, sample", CASES)
def test_every_op_computes_the_same_bits_without_a_sync(name, sample, cupy):
    arrays = [a.copy() if isinstance(a, np.ndarray) else a for a in sample.arrays(np.float32)]  # packed, as there
    needs = [is_float(a) for a in arrays]
    out, dout, gradients = run(REFERENCE[name], arrays, sample.options)
    boxed = [on_device(a, cupy) for a in arrays]
    options = {key: on_device(value, cupy) for key, value in sample.options.items()}
    ddout = None if dout is None else cupy.asarray(dout)
    node = REFERENCE[name](cupy, needs)
    with strict_cupy.no_sync():
        dev_out, several = stacked(node.forward(*boxed, **options), cupy)
        douts = tuple(ddout[i] for i in range(len(ddout))) if several else ddout
        dev_gradients = node.backward(douts) if has_gradient(REFERENCE[name]) else []
    assert np.array_equal(cupy.asnumpy(dev_out), out)
    for got, expected in zip(dev_gradients, gradients):
        assert expected is None or np.array_equal(cupy.asnumpy(got), expected)


def training_steps(device, steps, sync_free):
    """Losses and final weights of a few steps with dropout, accumulation and clipping, as train_gpt2.py does them."""
    model = GPT(TINY, seed=1)
    flat = FlatBuffers(model, device)
    optimizer = Adam(flat, weight_decay=0.1)
    rng = np.random.default_rng(0)
    losses = []
    for step in range(steps):
        x = rng.integers(0, 50, (4, 9))
        with sync_free():
            flat.zero_grad()
            for first in (0, 2):
                set_dropout(model, 7, step, first)
                _, loss = model(x[first : first + 2, :-1], x[first : first + 2, 1:])
                loss = loss * 0.5
                loss.backward()
            norm = grad_norm(flat.grad)
            optimizer.step(1e-2, clip_scale(norm, 0.5))
        losses.append((loss.item(), float(norm)))
    return losses, to_host(flat.data)


def test_a_training_step_computes_the_same_bits_and_never_waits(cupy):
    losses, weights = training_steps("cpu", 3, contextlib.nullcontext)
    device_losses, device_weights = training_steps("cuda", 3, strict_cupy.no_sync)
    assert losses == device_losses
    assert np.array_equal(weights, device_weights)
    assert losses[0][1] > 0.5  # clipping was at work


@pytest.fixture
def train(tmp_path, capsys):
    """train(device, more flags) trains a tiny model on a tiny text and returns its metrics, without times."""
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat. The dog sat on the cat.\n" * 20)

    def run_it(device, more):
        flags = f"--data {text} --n-layer 1 --n-embd 16 --n-head 2 --block-size 8 --vocab-size 270 --batch-size 4 "
        flags += f"--micro-batch-size 2 --dropout 0.1 --sample-tokens 4 --device {device} --kernels reference {more} "
        flags += f"--weights-out {tmp_path / device} --metrics {tmp_path / device}.jsonl --run-dir {tmp_path / 'run'}"
        assert train_gpt2.main(World(), flags.split()) == 0
        records = map(json.loads, (tmp_path / f"{device}.jsonl").read_text().splitlines())
        return [{k: v for k, v in record.items() if k not in ("ms", "tokens_per_s")} for record in records]

    return run_it


def test_train_gpt2_on_the_stand_in_equals_the_cpu(cupy, train, tmp_path):
    assert train("cpu", "--steps 3 --eval-every 2") == train("cuda", "--steps 3 --eval-every 2")
    models = [inference.load(str(tmp_path / device))[0] for device in ("cpu", "cuda")]
    for a, b in zip(*(model.parameters() for model in models)):
        assert np.array_equal(a.data, b.data)


def test_train_gpt2_reads_the_device_once_a_step(cupy, train, monkeypatch):
    monkeypatch.setattr(train_gpt2, "gemm_peak", lambda xp: 1e9)  # it reads the device as often as time allows
    counts = []
    for steps in (3, 8):
        with strict_cupy.count_syncs() as counted:
            train("cuda", f"--steps {steps} --eval-every 0 --sample-every 0")
        counts.append(counted.count)
    assert counts[1] - counts[0] == 5


def test_a_tensor_lives_on_its_device(cupy):
    x = Tensor(np.ones(3, np.float32), device="cuda", requires_grad=True)
    assert x.device == "cuda" and xp_of(x.data) is cupy
    (x * x).sum().backward()
    assert device_of(x.grad) == "cuda" and np.all(to_host(x.grad) == 2)
    assert Tensor(x.data, device="cpu").device == "cpu" and np.all(x.numpy() == 1)


def test_mixed_devices_are_refused_with_op_operands_and_cure(cupy):
    x, y = Tensor(np.ones(3, np.float32), device="cuda"), Tensor(np.ones(3, np.float32))
    with pytest.raises(TypeError, match=r"add: operands on different devices .*on cuda.*on cpu.*device='cuda'"):
        x + y


def test_moving_keeps_an_array_that_is_there_already(cupy):
    a = np.ones(3)
    assert to_device(a, "cpu") is a and to_host(a) is a
    b = to_device(a, "cuda")
    assert to_device(b, "cuda") is b and isinstance(to_device(b, "cpu"), np.ndarray)


def test_cuda_without_cupy_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "cupy", None)  # makes `import cupy` fail
    with pytest.raises(UserError, match=r"needs CuPy: pip install -e \"\.\[cuda13\]\""):
        array_module("cuda")


def test_cupy_without_a_gpu_says_so(cupy, monkeypatch):
    monkeypatch.setattr(cupy.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="CuPy finds no GPU"):
        array_module("cuda")


def test_cupy_without_a_library_of_cuda_says_what_to_install(cupy, monkeypatch):
    def get_version():
        raise RuntimeError('Failure finding "libnvrtc.so.13": no such file\n  listdir(...): ...')

    monkeypatch.setattr(cupy.cuda.nvrtc, "getVersion", get_version)
    with pytest.raises(UserError, match=r"libnvrtc\.so\.13\": no such file\); install .*\"\.\[cuda13\]\""):
        array_module("cuda")


def test_adam_takes_few_large_blocks_on_a_device(cupy, monkeypatch):
    """On a GPU each block costs 16 launches, and nothing is gained by staying in a cache."""
    sizes = {"cpu": [], "cuda": []}
    update = optim._update_block
    monkeypatch.setattr(optim, "_update_block", lambda p, *a: (sizes[device_of(p)].append(len(p)), update(p, *a)))
    n = 3 * optim._BLOCK + 7
    rng = np.random.default_rng(0)
    arrays = [rng.random(n, dtype=np.float32) for _ in range(4)]
    boxed = [cupy.asarray(a) for a in arrays]
    for p, g, m, v in (arrays, boxed):
        optim.adam_update(p, g, m, v, 0.5, 1, 1e-2, 0.9, 0.999, 1e-8, 0.1)
    assert sizes == {"cpu": [optim._BLOCK] * 3 + [7], "cuda": [n]}
    assert all(np.array_equal(a, cupy.asnumpy(b)) for a, b in zip(arrays, boxed))


def test_the_peak_of_a_fast_device_does_not_count_what_starting_a_product_takes(monkeypatch):
    now, n, loaded = 0.0, 0, False

    def ones(shape, dtype):
        nonlocal n
        n = shape[0]
        return np.zeros((1, 1), dtype)

    def matmul(a, b, out):
        nonlocal now, loaded
        now += 20e-6 + 2 * n**3 / 50e12 if loaded else 0.3
        loaded = True

    monkeypatch.setattr("time.perf_counter", lambda: now)
    device = SimpleNamespace(float32=np.float32, ones=ones, empty_like=np.empty_like, matmul=matmul)
    assert 0.95 * 50e12 < gemm_peak(device) < 50e12


def test_unknown_devices_are_named():
    with pytest.raises(UserError, match="'tpu' is not known; use one of: cpu, cuda"):
        array_module("tpu")


def test_cupy_has_every_function_that_is_used_of_it():
    """The real CuPy can be asked for its names without a GPU."""
    real = pytest.importorskip("cupy", reason="CuPy is not installed")
    root = pathlib.Path(train_gpt2.__file__).parent
    files = [*root.glob("ops/*.py"), *root.glob("tinygrad2/*.py"), *root.glob("models/*.py"), *root.glob("*.py")]
    names = {name for file in files for name in re.findall(r"\bxp\.(\w+)", file.read_text(encoding="utf-8"))}
    assert len(names) > 20 and [name for name in sorted(names) if not hasattr(real, name)] == []
