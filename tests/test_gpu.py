"""On a real GPU, if CuPy finds one: every op, every kernel, products and trainings, against the CPU.

`python -m benchmarks.gpu --parts tests` goes on behind a test that hangs or after which nothing works on the GPU.
"""

import contextlib
import json
import time
from dataclasses import replace

import cuda_checks
import fake_cublaslt
import numpy as np
import pytest
import strict_cupy
from gpu_works import a_gpu_that_works  # noqa: F401
from kernel_checks import error, is_float, run, stacked
from samples import SAMPLES, Sample, integers
from test_backends import CASES, REFERENCE, TINY, on_device, training_steps

import train_gpt2
from models import GPT
from ops.kernels.cuda import attention_hopper, cublaslt
from ops.kernels.cuda.attention import AttentionCUDA
from ops.kernels.cuda.attention_cudnn import AttentionCuDNN
from ops.kernels.cuda.cudnn_library import load_library
from ops.kernels.cuda.split_heads import SplitHeadsCUDA
from tinygrad2.dispatch import KERNELS, OPS, kernels
from tinygrad2.distributed.world import World
from tinygrad2.errors import UserError
from tinygrad2.halves import half_dtype
from tinygrad2.mixed_precision import mixed_precision

cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
if not cupy.cuda.is_available():
    pytest.skip("CuPy finds no GPU here", allow_module_level=True)

ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: bfloat16 on a GPU needs it")
from test_cuda_kernels import FURTHER  # noqa: E402

CAPABILITY = int(cupy.cuda.Device().compute_capability)
DTYPES = [dtype for dtype in cuda_checks.DTYPES if dtype != "bfloat16" or CAPABILITY >= 80]
STAND_IN = cupy is strict_cupy.cupy  # as where test_benchmarks.py runs this file without a GPU
pytestmark = pytest.mark.filterwarnings("default:cuBLASLt cannot be loaded", "default:no CUDA graph of decoding")
WITH_KERNELS = [  # (kernel, op) of every op that has one
    (kernel, OPS[name])
    for (name, library), found in sorted(KERNELS.items())
    if library == "cupy" and name in OPS
    for kernel in found
]
KERNEL_CASES = [
    pytest.param(kernel, sample, id=f"{op.name}-{i}")
    for kernel, op in WITH_KERNELS
    for i, sample in enumerate(SAMPLES[op.name] + FURTHER.get(op.name, []))
]
LARGE = {  # shapes of GPT-2 124M: many blocks, and rows of the lengths that occur
    "layernorm": [Sample(((4096, 768), (768,), (768,)))],
    "add_layernorm": [Sample(((4096, 768), (4096, 768), (768,), (768,)))],
    "gelu": [Sample(((4096, 3072),))],
    "linear": [Sample(((4096, 768), (768, 2304), (2304,))), Sample(((4096, 3072), (3072, 768), (768,)))],
    "mlp": [Sample(((2048, 768), (768, 3072), (3072,), (3072, 768), (768,)))],
    "attention": [Sample(((2, 12, 1024, 64),) * 3), Sample(((2, 12, 1024, 64),) * 3, dict(p=0.1, key=5)),
                  Sample(((1, 8, 1000, 128),) * 3), Sample(((1, 8, 300, 80),) * 3, dict(p=0.1, key=6, first=7)),
                  Sample(((2, 12, 100, 64), *((2, 12, 1100, 64),) * 2)), Sample(((3, 200, 33),) * 3),
                  Sample(((2, 12, 1, 64), *((2, 12, 1024, 64),) * 2)), Sample(((2, 200, 256),) * 3)],
    "embedding": [Sample(((50257, 768), integers(8, 1024, below=50257)))],
    "linear_cross_entropy": [Sample(((1024, 768), (50257, 768), integers(1024, below=50257)))],
    "cross_entropy": [Sample(((1024, 50257), integers(1024, below=50257)))],
    "dropout": [Sample(((4096, 3072),), dict(p=0.1, key=3))],
    "softmax": [Sample(((4096, 1024),))],
}
LARGE_CASES = [
    pytest.param(kernel, sample, id=f"{op.name}-{i}")
    for kernel, op in WITH_KERNELS
    for i, sample in enumerate(LARGE.get(op.name, []))
]


@pytest.fixture(autouse=True)
def products_of_the_stand_in(monkeypatch):
    if STAND_IN:
        fake_cublaslt.install(monkeypatch)


@pytest.fixture
def by_cudnn():
    try:
        load_library()
    except UserError as error:
        pytest.skip(str(error))
    if CAPABILITY < 80:
        pytest.skip("cuDNN's attention needs compute capability 8.0")


@contextlib.contextmanager
def no_waiting(seconds=1.0):
    """The host does not wait for the device within the block: a kernel that runs for so long, started before the block,
    is still running behind it."""
    source = """extern "C" __global__ void spin(long long nanoseconds) {
        unsigned long long begin, now;
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(begin));
        do asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now)); while (now - begin < nanoseconds);
    }"""
    spin = cupy.RawModule(code=source).get_function("spin")
    spin((1,), (1,), (np.int64(1),))
    cupy.cuda.get_current_stream().synchronize()
    spin((1,), (1,), (np.int64(1e9 * seconds),))
    event, start = cupy.cuda.Event(), time.perf_counter()
    event.record()
    yield
    took = time.perf_counter() - start
    assert not event.done, f"something waited for the device ({took:.2f} s)"


# -- ops and kernels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel, sample", KERNEL_CASES)
def test_a_kernel_equals_its_reference(kernel, sample, dtype):
    """And it computes the same bits twice."""
    if not cuda_checks.check_kernel(kernel, OPS[kernel.name], cupy, sample, dtype):
        pytest.skip("the kernel leaves these arrays to the reference")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel, sample", LARGE_CASES)
def test_a_kernel_equals_its_reference_at_large_shapes(kernel, sample, dtype):
    assert cuda_checks.check_kernel(kernel, OPS[kernel.name], cupy, sample, dtype)


@pytest.mark.skipif(CAPABILITY != 90, reason="products of warpgroups are those of compute capability 9.0")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_attention_by_warpgroups_equals_its_reference(dtype):
    """Chosen here whatever a comparison says; and the comparison says that they are right."""
    assert attention_hopper.tiles_for(AttentionCUDA, cupy, half_dtype(dtype), 64, 0.0) is attention_hopper.HOPPER
    with attention_hopper.path("warpgroups"):
        for sample in LARGE["attention"]:
            assert cuda_checks.check_kernel(AttentionCUDA, OPS["attention"], cupy, sample, dtype)


@pytest.mark.parametrize("name, sample", CASES)
def test_every_op_equals_the_cpu(name, sample):
    arrays = sample.arrays(np.float32)
    out, dout, gradients = run(REFERENCE[name], arrays, sample.options)
    node = REFERENCE[name](cupy, [is_float(a) for a in arrays])
    options = {key: on_device(value, cupy) for key, value in sample.options.items()}
    got_out, several = stacked(node.forward(*(on_device(a, cupy) for a in arrays), **options), cupy)
    ddout = None if dout is None else cupy.asarray(dout)
    got_gradients = [] if dout is None else node.backward(tuple(ddout) if several else ddout)
    for got, expected in zip([got_out, *got_gradients], [out, *gradients]):
        if expected is not None:
            assert np.allclose(cupy.asnumpy(got), expected, rtol=1e-4, atol=1e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("sample", LARGE["attention"])
def test_attention_in_tf32_equals_its_reference(sample):
    arrays = sample.arrays(np.float32)
    dout = np.random.default_rng(1).standard_normal(arrays[0].shape).astype(np.float32)
    exact, _, exact_gradients = run(OPS["attention"], cuda_checks.widened(arrays), sample.options, dout.astype(float))
    found = []
    for _ in range(2):
        out, gradients, _ = cuda_checks.run_kernel(AttentionCUDA, cupy, arrays, sample.options, "tf32", [dout])
        found.append([*out, *gradients])
    for got, again, expected in zip(*found, [exact, *exact_gradients]):
        assert error(got, expected) <= 2.0**-9 and np.array_equal(got, again)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("B, T, nh, hs", [(2, 1024, 12, 64), (1, 128, 8, 128), (4, 192, 6, 40)])
def test_attention_by_cudnn_equals_its_reference(by_cudnn, B, T, nh, hs, dtype):
    sample = Sample(((B, nh, T, hs),) * 3)
    assert cuda_checks.check_kernel(AttentionCuDNN, OPS["attention"], cupy, sample, dtype)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_attention_by_cudnn_in_the_packed_projection_equals_ours(by_cudnn, dtype):
    B, T, nh, hs = 2, 512, 12, 64
    x = cupy.asarray(np.random.default_rng(0).standard_normal((B, T, 3 * nh * hs)).astype(half_dtype(dtype)))
    found = []
    for kernel in (AttentionCuDNN, AttentionCUDA):
        with mixed_precision(dtype):
            split, node = SplitHeadsCUDA(cupy, [True]), kernel(cupy, [True] * 3)
            out = node.forward(*split.forward(x, nh))
            gradients = node.backward(out)
            (dx,) = split.backward(gradients)
        assert dx.data.ptr == gradients[0].data.ptr
        found.append([cuda_checks.host(value) for value in (out, dx)])
    for theirs, ours in zip(*found):
        assert error(theirs, ours) <= 2 * cuda_checks.TOLERANCE[dtype]


# -- products ----------------------------------------------------------------------------------------------------------


def test_the_library_of_products_loads():
    assert cublaslt.load_library() is not None, "cuBLASLt cannot be loaded: products run through CuPy"
    assert cublaslt.load_library().cublasLtGetVersion() >= 110000


def test_tf32_is_used_where_it_is_permitted():
    from ops.kernels.cuda.products import gemm

    a, b = np.random.default_rng(0).standard_normal((2, 1024, 1024), np.float32)
    expected = np.matmul(a, b, dtype=np.float64)
    size = np.abs(expected).max()
    errors = [
        np.abs(gemm(cupy.asarray(a), cupy.asarray(b), precision=precision).get() - expected).max() / size
        for precision in ("highest", "high")
    ]
    assert errors[0] < 1e-5 and errors[1] < 2e-3
    if CAPABILITY >= 80 and not STAND_IN:
        assert errors[1] > 1e-5                                   # else it was float32


# -- trainings ---------------------------------------------------------------------------------------------------------


def test_training_equals_the_cpu():
    losses, _ = training_steps("cpu", 5, contextlib.nullcontext)
    gpu_losses, _ = training_steps("cuda", 5, contextlib.nullcontext)
    assert np.allclose(losses, gpu_losses, rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_never_waits_for_the_device_and_repeats_its_bits(dtype):
    if STAND_IN:
        pytest.skip("a kernel that runs at the same time needs a GPU")
    with kernels("auto"), mixed_precision(dtype):
        first = training_steps("cuda", 3, contextlib.nullcontext)
        again = training_steps("cuda", 3, no_waiting)
    assert first[0] == again[0] and np.array_equal(first[1], again[1])


@pytest.fixture
def train(tmp_path, capsys):
    """train(more flags) trains a tiny model on a tiny text for 20 steps and returns the losses."""
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat. The dog sat on the cat.\n" * 40)

    def run_it(more, steps=20):
        flags = f"--data {text} --n-layer 2 --n-embd 64 --n-head 4 --block-size 32 --vocab-size 288 --batch-size 8 "
        flags += f"--micro-batch-size 4 --dropout 0.1 --sample-tokens 4 --steps {steps} --eval-every 0 {more} "
        flags += f"--weights-out {tmp_path / 'w'} --metrics {tmp_path / 'metrics'}.jsonl --run-dir {tmp_path / 'run'}"
        assert train_gpt2.main(World(), flags.split()) == 0
        records = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
        return [record["loss"] for record in records if "loss" in record]

    return run_it


@pytest.mark.parametrize("dtype", DTYPES)
def test_twenty_steps_of_train_gpt2_in_each_dtype(train, dtype):
    steps = 3 if STAND_IN else 20
    reference = train("--device cpu --kernels reference", steps)
    losses = train(f"--device cuda --dtype {dtype}", steps)
    assert len(losses) == len(reference) == steps and (steps < 20 or losses[-1] < losses[0] - 0.5)
    apart = np.abs(np.subtract(losses, reference))
    assert apart[0] < (1e-4 if dtype == "float32" else 1e-2)
    assert apart.max() < (2e-3 if dtype == "float32" else 5e-2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_reading_seldom_and_graphs_change_no_bit(train, dtype):
    """With dropout: keys, learning rate and step count come from the GPU, and in float16 the scale of the loss."""
    steps = 5 if STAND_IN else 20
    each = train(f"--device cuda --dtype {dtype} --read-every 1", steps)
    for more in ("--read-every 4 --cuda-graph no", "--read-every 7 --cuda-graph yes"):
        assert train(f"--device cuda --dtype {dtype} {more}", steps) == each


@pytest.mark.parametrize("graph", ["no", "yes"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_in_an_arena_have_the_bits_of_those_without(train, dtype, graph, monkeypatch):
    from tinygrad2.gpu.arena import Arena

    flags = f"--device cuda --dtype {dtype} --dropout 0 --read-every 2 --cuda-graph"
    steps = 5 if STAND_IN else 12
    losses = train(f"{flags} {graph}", steps)
    monkeypatch.setattr(Arena, "step", lambda self: contextlib.nullcontext())
    assert train(f"{flags} no", steps) == losses


@pytest.mark.parametrize("graph", ["no", "yes"])
def test_a_training_with_attention_by_cudnn(by_cudnn, train, graph):
    """The same bits twice, as a CUDA graph too; about the losses of ours."""
    flags = "--device cuda --dtype bfloat16 --block-size 64 --dropout 0 --cuda-graph"
    by_ours, by_theirs = train(f"{flags} no"), train(f"{flags} no --gpu-attention cudnn")
    assert np.abs(np.subtract(by_ours, by_theirs)).max() < 5e-2
    assert train(f"{flags} {graph} --gpu-attention cudnn") == by_theirs


def test_a_text_is_the_same_on_both_devices():
    texts = []
    for device in ("cpu", "cuda"):
        from tinygrad2.flat_buffers import FlatBuffers

        model = GPT(TINY, seed=1)
        FlatBuffers(model, device)
        model.eval()
        texts.append(list(model.generate([3, 1, 4], 12)))
    assert texts[0] == texts[1] and len(texts[0]) == 12


@pytest.mark.parametrize("n_texts", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_new_tokens_by_a_graph_have_the_bits_of_the_usual_way(dtype, n_texts, monkeypatch):
    """Beyond the 16 tokens of the context, too, where there is no graph."""
    from models.decode_graph import DecodeGraph
    from models.generation import generate
    from tinygrad2.flat_buffers import FlatBuffers

    model, texts = GPT(replace(TINY, block_size=16), seed=1).eval(), []
    FlatBuffers(model, "cuda")
    prompts, graphs, by_graph = [[3, 1, 4], [1], [5, 9]][:n_texts], [], DecodeGraph.scores_after

    def noted(self, *args):
        scores = by_graph(self, *args)
        graphs.append(None if scores is None else self.graph)
        return scores

    for way in (noted, lambda *args: None):
        monkeypatch.setattr(DecodeGraph, "scores_after", way)
        rngs = [np.random.default_rng(i) for i in range(n_texts)]
        with mixed_precision(dtype):
            texts.append(list(generate(model, prompts, 20, rngs, logprobs=True)))
    assert texts[0] == texts[1] and len(texts[0]) == 20 * n_texts
    assert sum(graph is not None for graph in graphs) == 12, "no graph was launched"


def test_gradients_of_two_gpus_are_summed_from_gpu_to_gpu(tmp_path):
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("there is one GPU")
    from test_distributed import mpirun

    flags = "train_gpt2.py --n-layer 1 --n-embd 32 --n-head 2 --steps 5 --eval-every 0 --sample-every 0 --device cuda "
    losses = []
    for ranks, way in ((1, "auto"), (2, "nccl"), (2, "host")):
        metrics = tmp_path / f"{ranks}-{way}.jsonl"
        more = f"--gpu-allreduce {way} --metrics {metrics} --run-dir {tmp_path / metrics.stem} "
        more += f"--weights-out {tmp_path / 'w'}"
        result = mpirun(ranks, *flags.split(), *more.split(), cwd=train_gpt2.__file__.rpartition("/")[0])
        assert result.returncode == 0, result.stderr
        losses.append([json.loads(line)["loss"] for line in metrics.read_text().splitlines()])
    assert np.allclose(losses[0], losses[1], rtol=1e-4) and np.allclose(losses[0], losses[2], rtol=1e-4)


# -- halves ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_rounding_to_16_bits_is_that_of_the_host(dtype):
    values = np.concatenate([
        np.random.default_rng(0).standard_normal(10_000).astype(np.float32),
        np.float32([0, -0.0, 1, 65504, 65519.99, 65520, 1e38, 3.4e38, np.inf, -np.inf, 1e-8, 6e-8, 1e-40]),
        (np.random.default_rng(1).integers(0, 2**32, 10_000, np.uint32) & 0xFFFF8000).view(np.float32),      # ties
    ])  # fmt: skip
    values = values[~np.isnan(values)]
    with np.errstate(over="ignore"):
        expected = values.astype(half_dtype(dtype))
        got = cupy.asnumpy(cupy.asarray(values).astype(half_dtype(dtype)))
    assert np.array_equal(got.view(np.uint16), expected.view(np.uint16))
