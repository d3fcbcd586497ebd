"""Attention by cuDNN (--gpu-attention cudnn), on a stand-in for its front end: what is asked of it, values, trainings
and CUDA graphs with it, and the line where it cannot be used."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import cuda_checks
import fake_cublaslt
import fake_cudnn
import numpy as np
import pytest
import strict_cupy
import test_captured
from cuda_host import needs_compiler, running
from kernel_checks import error
from test_captured import FLAGS, trained
from test_frozen import Tokens

from ops.attention import Attention
from ops.kernels.cuda import cudnn_plans
from ops.kernels.cuda.attention import AttentionCUDA
from ops.kernels.cuda.attention_cudnn import AttentionCuDNN, describe_attention
from ops.kernels.cuda.split_heads import SplitHeadsCUDA
from tinygrad2.dispatch import OPS, choose
from tinygrad2.errors import UserError
from tinygrad2.gpu_library import gpu_library, gpu_library_in_use
from tinygrad2.halves import dtype_named, half_dtype
from tinygrad2.precision import computing
from tinygrad2.training.gpu_plan import plan_for
from train_gpt2 import parse

pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: bfloat16 on a GPU needs it")
HALVES = ("bfloat16", "float16")
TRAINING = "--block-size 64 --dtype bfloat16 --gpu-attention cudnn"


@pytest.fixture
def cupy(monkeypatch):
    return strict_cupy.install(monkeypatch)


@pytest.fixture
def fake(cupy, monkeypatch):
    return fake_cudnn.install(monkeypatch)


def heads(B, T, nh, hs, dtype):
    """q, k and v, and the packed projection (B, T, 3C) of which they are slices."""
    x = np.random.default_rng(0).standard_normal((B, T, 3 * nh * hs)).astype(half_dtype(dtype))
    with cuda_checks.in_precision(dtype):
        split = SplitHeadsCUDA(strict_cupy.cupy, [True])
        return split, split.forward(strict_cupy.ndarray(x), nh)


# -- values and memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("B, T, nh, hs", [(2, 64, 3, 64), (1, 128, 2, 8), (1, 192, 1, 128), (3, 64, 5, 40)])
def test_it_equals_the_reference(fake, cupy, B, T, nh, hs, dtype):
    split, (q, k, v) = heads(B, T, nh, hs, dtype)
    dout = np.random.default_rng(1).standard_normal((B, nh, T, hs)).astype(half_dtype(dtype))
    results = []
    for _ in range(2):
        with cuda_checks.in_precision(dtype), gpu_library("cudnn"), strict_cupy.no_sync():
            assert choose(OPS["attention"], cupy, (q, k, v)) is AttentionCuDNN
            node = AttentionCuDNN(cupy, [True] * 3)
            out = node.forward(q, k, v)
            gradients = node.backward(strict_cupy.ndarray(dout))
            (dx,) = split.backward(gradients)
        assert out.transpose(0, 2, 1, 3).flags.c_contiguous and dx.data.ptr == gradients[0].data.ptr
        results.append([cuda_checks.host(x) for x in (out, *gradients)])
    assert fake.executed == ["sdpa", "sdpa_backward"] * 2 and len(fake.plans) == 2      # built once
    reference = Attention(np, [True] * 3)
    exact = [reference.forward(*map(cuda_checks.host, (q, k, v))), *reference.backward(dout.astype(np.float64))]
    for got, again, expected in zip(*results, exact):
        assert error(got, expected) <= cuda_checks.TOLERANCE[dtype] and np.array_equal(got, again)


@needs_compiler
@pytest.mark.parametrize("T, hs", [(64, 64), (128, 40)])
def test_it_equals_our_kernels(fake, cupy, T, hs):
    _, (q, k, v) = heads(1, T, 2, hs, "bfloat16")
    found = []
    for kernel in (AttentionCuDNN, AttentionCUDA):
        with cuda_checks.in_precision("bfloat16"), running(check=False):
            node = kernel(cupy, [True] * 3)
            out = node.forward(q, k, v)
            found.append([cuda_checks.host(x) for x in (out, *node.backward(out))])
    for theirs, ours in zip(*found):
        assert error(theirs, ours) <= 2 * cuda_checks.TOLERANCE["bfloat16"]


def test_the_statistics_are_not_ours(fake, cupy):
    """Natural logarithms, a column for each head; those of attention.py are to base 2."""
    _, (q, k, v) = heads(2, 64, 3, 8, "bfloat16")
    with cuda_checks.in_precision("bfloat16"):
        node = AttentionCuDNN(cupy, [True] * 3)
        node.forward(q, k, v)
    stats = node.saved[-1]
    scores = cuda_checks.host(q) @ cuda_checks.host(k).swapaxes(-1, -2) / np.sqrt(8)
    expected = np.log((np.exp(scores) * np.tri(64)).sum(-1, keepdims=True))
    assert stats.shape == (2, 3, 64, 1) and stats.dtype == np.float32
    assert np.allclose(cuda_checks.host(stats), expected, rtol=1e-6, atol=1e-6)


@needs_compiler
def test_arrays_of_16_bits_in_float32_are_ours(fake, cupy):
    _, (q, k, v) = heads(1, 64, 1, 8, "bfloat16")
    with running(check=False) as launches:
        out = AttentionCuDNN(cupy, [False] * 3).forward(q, k, v)
    assert not fake.executed and launches == ["attention_plain_forward"] and out.dtype == np.float32


@needs_compiler
def test_dropout_is_ours(fake, cupy):
    _, (q, k, v) = heads(1, 64, 1, 8, "bfloat16")
    with cuda_checks.in_precision("bfloat16"), running(check=False) as launches:
        node = AttentionCuDNN(cupy, [True] * 3)
        out = node.forward(q, k, v, p=0.1, key=3)
        node.backward(out)
    assert not fake.executed and launches[0] == "attention_forward" and len(launches) == 4


def test_a_gradient_that_cudnn_cannot_read_is_copied(fake, cupy):
    _, (q, k, v) = heads(1, 64, 2, 8, "bfloat16")
    dout = np.random.default_rng(1).standard_normal((1, 2, 64, 8)).astype(half_dtype("bfloat16"))
    memory = np.empty(dout.size + 1, dout.dtype)
    memory[1:] = dout.reshape(-1)
    found = []
    for x in (strict_cupy.ndarray(dout), strict_cupy.ndarray(memory)[1:].reshape(dout.shape)):
        with cuda_checks.in_precision("bfloat16"):
            node = AttentionCuDNN(cupy, [True] * 3)
            node.forward(q, k, v)
            found.append(list(map(cuda_checks.host, node.backward(x))))
    assert all(np.array_equal(*pair) for pair in zip(*found))


def test_what_is_left_to_our_kernels(fake, cupy):
    def chosen(*shapes, dtype="bfloat16", library="cudnn"):
        with gpu_library(library):
            return choose(OPS["attention"], cupy, [cupy.empty(shape, dtype_named(dtype)) for shape in shapes])

    same = ((1, 2, 64, 64),) * 3
    assert chosen(*same) is AttentionCuDNN
    assert chosen(*same, library=None) is AttentionCUDA and chosen(*same, dtype="float32") is AttentionCUDA
    for shape in ((1, 2, 65, 64), (1, 2, 64, 136), (1, 2, 64, 60), (2, 64, 64)):
        assert chosen(*(shape,) * 3) is AttentionCUDA
    assert chosen((1, 2, 64, 64), *((1, 2, 128, 64),) * 2) is AttentionCUDA
    values = np.empty((1, 2, 64, 64), half_dtype("bfloat16"))
    assert not AttentionCuDNN.supports(*[strict_cupy.ndarray(np.asfortranarray(values))] * 3)
    gaps = strict_cupy.ndarray(np.empty((1, 2, 64, 65), values.dtype))[..., :64]          # rows 130 bytes apart
    assert not AttentionCuDNN.supports(*[gaps] * 3)
    with gpu_library("cudnn"):
        assert choose(OPS["attention"], np, [values] * 3) is not AttentionCuDNN          # on the CPU


def test_a_larger_workspace_leaves_the_smaller_one(cupy, monkeypatch):
    """A CUDA graph may have its address."""
    monkeypatch.setattr(cudnn_plans, "_workspaces", {})
    sizes = [cudnn_plans._workspace(cupy, 0, 0, size).nbytes for size in (0, 100, 50, 200)]
    other = cudnn_plans._workspace(cupy, 0, 1, 50)                # of another stream, which may run at the same time
    assert other.nbytes == 50 and cudnn_plans._workspace(cupy, 1, 0, 60).nbytes == 60
    assert sizes == [1, 100, 100, 200] and [x.nbytes for x in cudnn_plans._workspaces[0, 0]] == [1, 100, 200]


# -- trainings ---------------------------------------------------------------------------------------------------------


class LongTokens(Tokens):
    """Rows of 64 tokens."""

    def micro_batches(self, position, rows):
        for first, x, y in super().micro_batches(position, rows):
            yield first, np.tile(x, 8), np.tile(y, 8)


@needs_compiler
@pytest.mark.parametrize("more", ["", "--micro-batch-size 2 --recompute"])
def test_a_training_with_it_is_the_same_as_a_cuda_graph(fake, cupy, monkeypatch, more):
    """The plans are built before; the graph's calls are those of a step. The losses are about ours."""
    fake_cublaslt.install(monkeypatch)
    monkeypatch.setattr(test_captured, "Tokens", LongTokens)
    flags, graphs = f"{TRAINING} {more}", []
    with running(check=False) as launches:
        usual, weights = trained(f"{flags} --cuda-graph no")
        each = len(fake.executed) // 5
        by_graph, same = trained(f"{flags} --cuda-graph yes", watch=lambda g: graphs.append(g.graph is not None))
        assert not any(name.startswith("attention") for name in launches)
        ours, _ = trained(f"{flags.replace('cudnn', 'own')} --cuda-graph no", steps=2)
        assert "attention_forward" in launches
    micro_batches = 2 if more else 1
    assert each == micro_batches * (3 if more else 2) and len(fake.executed) == 10 * each + each  # the capture runs too
    assert graphs[:2] == [False] * 2 and graphs[3:] == [True] * 2 and len(fake.plans) == 2
    assert np.array_equal(usual, by_graph) and np.array_equal(weights, same)
    assert np.allclose(usual[0], ours[0], rtol=2e-2)


# -- the user's line ---------------------------------------------------------------------------------------------------


def describe(cupy, flags, xp=None):
    config, model_config, _ = parse([*FLAGS, *flags.split()])
    return describe_attention(config, model_config, xp or cupy)


def test_what_is_said_at_the_start(fake, cupy):
    assert describe(cupy, TRAINING).startswith("cuDNN 9.19.0 (--gpu-attention cudnn), backward deterministic")
    assert describe(cupy, "") == "ops/kernels/cuda (--gpu-attention own)"
    assert describe(cupy, "--gpu-attention warps") == "ops/kernels/cuda (--gpu-attention warps)"
    assert describe(cupy, "--device cpu", np) == describe(cupy, "--kernels reference") == ""


@pytest.mark.parametrize("flags, reason", [
    ("--dtype float32", "takes 16-bit numbers: use --dtype bfloat16 or float16"),
    ("--kernels reference", "no kernel runs: use --kernels auto"),
    ("--block-size 96", "a multiple of 64 .* not 96 and 8"),
    ("--n-embd 24", "not 64 and 12"),
    ("--dropout 0.1", "use --dropout 0"),
])  # fmt: skip
def test_what_cudnn_does_not_have(fake, cupy, flags, reason):
    with pytest.raises(UserError, match=f"^--gpu-attention cudnn: .*{reason}.*; or use --gpu-attention own$"):
        describe(cupy, f"{TRAINING} {flags}")


def test_it_needs_a_gpu_that_has_it(fake, cupy, monkeypatch):
    with pytest.raises(UserError, match="it needs --device cuda; or"):
        describe(cupy, f"{TRAINING} --device cpu", np)
    monkeypatch.setattr(type(cupy.cuda.Device()), "compute_capability", "75")
    with pytest.raises(UserError, match=r"of compute capability 7\.5, is too old \(8\.0\)"):
        describe(cupy, TRAINING)


def test_a_library_that_is_not_there(cupy, monkeypatch):
    fake_cudnn.forget(monkeypatch)
    install = re.escape('pip install -e ".[cudnn]"')
    monkeypatch.setitem(sys.modules, "cudnn", None)
    with pytest.raises(UserError, match=f"cuDNN cannot be used .*{install}"):
        describe(cupy, TRAINING)

    def no_symbol():
        raise RuntimeError("Unable to find symbol cudnnGetVersion")

    monkeypatch.setitem(sys.modules, "cudnn", SimpleNamespace(backend_version=no_symbol))
    with pytest.raises(UserError, match=rf"cannot be used \(Unable to find symbol cudnnGetVersion\): {install}"):
        describe(cupy, TRAINING)
    fake_cudnn.install(monkeypatch, version=90802)
    with pytest.raises(UserError, match=f"cuDNN 9.8.2 is too old, 9.16.0 is needed: {install}"):
        describe(cupy, TRAINING)


def test_a_problem_for_which_the_library_has_no_engine(fake, cupy):
    fake.has_no_engine = True
    _, (q, k, v) = heads(1, 64, 1, 8, "bfloat16")
    with cuda_checks.in_precision("bfloat16"), pytest.raises(
        UserError, match=r"no attention \(forward\) for bfloat16 \(1, 1, 64, 8\) here \(No valid .* own$"
    ):
        AttentionCuDNN(cupy, [True] * 3).forward(q, k, v)


def test_the_flag_reaches_the_ops():
    config, _, _ = parse([*FLAGS, *TRAINING.split()])
    with computing(config):
        assert gpu_library_in_use() == "cudnn"
    assert gpu_library_in_use() is None


def test_the_plan_of_memory_counts_it():
    sizes = []
    for more in ("", "--gpu-attention cudnn"):
        config, model_config, _ = parse([*FLAGS, *TRAINING.split()[:-2], *more.split()])
        sizes.append(plan_for(config).of(config, model_config, False, 0).total)
    assert sizes[1] - sizes[0] == 4 * 2 * 64 * (2 * 64 + 8)       # rows, heads, T


# -- the real front end ------------------------------------------------------------------------------------------------

LIBRARY = r"""
#include <stddef.h>
size_t cudnnGetVersion(void) { return 91900; }
size_t cudnnGetCudartVersion(void) { return 13000; }
int cudnnCreate(void** handle) { static int one; *handle = &one; return 0; }
int cudnnSetStream(void* handle, void* stream) { return 0; }
int cudnnGetStream(void* handle, void** stream) { *stream = 0; return 0; }
const char* cudnnGetErrorString(int status) { return ""; }
void cudnnGetLastErrorString(char* text, size_t size) { if (size) *text = 0; }
int cudnnBackendCreateDescriptor(int kind, void** made) { static long n; *made = (void*)++n; return 0; }
int cudnnBackendDestroyDescriptor(void* it) { return 0; }
int cudnnBackendFinalize(void* it) { return 0; }
int cudnnBackendSetAttribute(void* it, int name, int kind, long n, const void* values) { return 0; }
int cudnnBackendGetAttribute(void* it, int name, int kind, long n, long* found, void* values) {
    if (found) *found = 0;
    return 0;
}
"""  # cuDNN without engines: the front end checks a graph and translates it, and then finds none
BUILD = """
import functools
import sys

import cudnn

from ops.kernels.cuda.cudnn_library import handle
from ops.kernels.cuda.cudnn_plans import Plan, Problem
from tinygrad2.errors import UserError

pygraph, (B, nh, T) = cudnn.pygraph, (2, 3, 192)
print(cudnn.backend_version())
for architecture in (80, 90):
    cudnn.pygraph = functools.partial(pygraph, sm_version=architecture, sm_count=100)
    for hs in (64, 128, 60):
        packed, rows = (3 * T * nh * hs, hs, 3 * nh * hs, 1), (T * nh * hs, hs, nh * hs, 1)
        for kind, names in (("forward", "q k v out"), ("backward", "q k v out dout dq dk dv")):
            strides = tuple((name, rows if "out" in name else packed) for name in names.split())
            try:
                Plan(Problem(kind, sys.argv[1], (B, nh, T, hs), strides, 0), handle(0))
            except UserError as error:
                print(hs, kind, str(error).replace(chr(10), " "))
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
@pytest.mark.parametrize("dtype", HALVES)
def test_the_front_end_accepts_our_graphs(dtype, tmp_path):
    if importlib.util.find_spec("cudnn") is None:
        pytest.skip("nvidia-cudnn-frontend is not installed")
    (tmp_path / "library.c").write_text(LIBRARY)
    compile_it = ["gcc", "-w", "-shared", "-fPIC", "-o", tmp_path / "libcudnn.so.9", tmp_path / "library.c"]
    subprocess.run(compile_it, check=True, timeout=60)
    path = os.pathsep.join(sys.path)
    environment = os.environ | dict(LD_LIBRARY_PATH=str(tmp_path), PYTHONPATH=path, PYTHONIOENCODING="utf-8")
    command = [sys.executable, "-c", BUILD, dtype]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    version, *lines = run.stdout.splitlines()
    if version != "91900":
        pytest.skip("the real cuDNN was loaded, which needs a GPU")
    assert len(lines) == 12, run.stderr
    for line in lines:
        expected = "multiple of 8" if line.startswith("60") else "No valid engine configs"
        assert expected in line and line.endswith("use --gpu-attention own")
