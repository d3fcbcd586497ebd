"""Every CUDA kernel, run on the CPU, computes what its reference computes; and planted faults are found."""

from types import SimpleNamespace

import cuda_checks
import cuda_host
import fake_cublaslt
import numpy as np
import pytest
import strict_cupy
from cuda_host import KernelFault, needs_compiler
from kernel_checks import error
from samples import SAMPLES, Sample, between, bfloat16, int8, integers, positive, spaced

import ops
from ops.kernels.cuda.layernorm import LayerNormCUDA
from tinygrad2 import Tensor
from tinygrad2.dispatch import KERNELS, OPS, kernels
from tinygrad2.missing_kernels import watch_missing_kernels

pytestmark = needs_compiler
pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: bfloat16 on a GPU needs it")

FURTHER = {  # sizes that matter to a kernel: more rows than a block has, rows of more than a warp's elements
    **{name: [Sample(((33, 250),))] for name in ("exp", "tanh", "sigmoid", "neg")},
    **{name: [Sample((positive(33, 250),))] for name in ("log", "sqrt")},
    **{name: [Sample((spaced(33, 250),))] for name in ("abs", "relu")},
    **{name: [Sample(((33, 250), positive(33, 250)))] for name in ("sub", "mul", "div")},
    **{name: [Sample((spaced(33, 250), between(33, 250)))] for name in ("maximum", "minimum")},
    "add": [Sample(((33, 250), (33, 250))), Sample(((2, 3, 344), (2, 3, 344))), Sample(((40, 3, 88), (3, 88))),
            Sample(((5, 9, 250), (9, 250)))],
    "cross_entropy": [Sample(((3, 8200), integers(3, below=8200))), Sample(((2, 16401), integers(2, below=16401))),
                      Sample(((6, 300), integers(6, below=3)), dict(ignore_index=1)),
                      Sample(((1100, 9), integers(1100, below=9)), dict(ignore_index=1))],
    "dropout": [Sample(((33, 250),), dict(p=0.25, key=2**64 - 1, first=2**40)),
                Sample(((2, 344),), dict(p=0.5, key=9))],
    "softmax": [Sample(((3, 2, 8200),)), Sample(((5, 264, 3),), dict(axis=1)), Sample(((2, 16401),))],
    "log_softmax": [Sample(((3, 2, 8200),)), Sample(((5, 264, 3),), dict(axis=1))],
    "embedding": [Sample(((40, 24), integers(3, 100, below=2))), Sample(((9, 1100), integers(5, below=9))),
                  Sample(((5, 1032), integers(2, 300, below=1)))],
    "linear_cross_entropy": [Sample(((9, 24), (264, 24), integers(9, below=264)))],
    "gelu": [Sample(((33, 250),)), Sample(((2, 3, 344),))],
    "gelu_erf": [Sample(((33, 250),)), Sample(((2, 3, 344),))],
    "layernorm": [Sample(((13, 264), (264,), (264,))), Sample(((2, 3, 770), (770,)), dict(eps=1e-3)),
                  Sample(((2, 3104), (3104,), (3104,)))],
    "add_layernorm": [Sample(((13, 264), (13, 264), (264,), (264,))), Sample(((2, 5, 33), (2, 5, 33), (33,)))],
    "linear": [Sample(((130, 65), (65, 17), (17,))), Sample(((2, 17, 3), (3, 130), (130,)))],
    "linear_int8": [Sample(((8, 1040), int8(9, 1040), positive(9), (9,))), Sample(((9, 48), int8(7, 48), positive(7))),
                    Sample(((9, 4112), int8(3, 4112), positive(3))), Sample(((9, 300), int8(3, 300), positive(3))),
                    Sample(((3, 70), int8(5, 70), positive(5)))],
    "linear_bfloat16": [Sample(((1, 520), bfloat16(9, 520), (9,))), Sample(((5, 264), bfloat16(9, 264)))],
    "matmul": [Sample(((3, 17, 65), (3, 65, 130))), Sample(((2, 3, 5, 8), (8, 17))), Sample(((65,), (65, 3)))],
}  # fmt: skip
CASES = [
    pytest.param(kernel, sample, id=f"{name}-{kernel.__name__}-{i}")
    for (name, library), kernels in sorted(KERNELS.items())
    if library == "cupy" and name in OPS
    for kernel in kernels
    for i, sample in enumerate(SAMPLES[name] + FURTHER.get(name, []))
]


@pytest.fixture
def cupy(monkeypatch):
    cupy = strict_cupy.install(monkeypatch)
    fake_cublaslt.install(monkeypatch)
    return cupy


@pytest.mark.parametrize("dtype", cuda_checks.DTYPES)
@pytest.mark.parametrize("kernel, sample", CASES)
def test_a_kernel_equals_its_reference(kernel, sample, dtype, cupy):
    if not cuda_checks.check_kernel(kernel, OPS[kernel.name], cupy, sample, dtype):
        pytest.skip("the kernel leaves these arrays to the reference")


# -- how arrays lie in memory ------------------------------------------------------------------------------------------


def backwards(a):
    back = (slice(None, None, -1),) * a.ndim
    return a[back].copy()[back]


def every_second(a):
    memory = np.empty((*a.shape, 2), a.dtype)
    memory[..., 0] = a
    return memory[..., 0]


def one_further(a):
    memory = np.empty(a.size + 1, a.dtype)
    memory[1:] = a.reshape(-1)
    return memory[1:].reshape(a.shape)


def with_a_gap(a):
    memory = np.empty((*a.shape[:-1], a.shape[-1] + 3), a.dtype)
    memory[..., :-3] = a
    return memory[..., :-3]


LAYOUTS = [backwards, every_second, one_further, with_a_gap, np.asfortranarray]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", sorted({name for name, library in KERNELS if library == "cupy" and name in OPS}))
def test_arrays_may_lie_in_memory_in_any_way(name, dtype, cupy):
    """Inputs and gradients of results, or of one result for all rows (0 bytes apart), give what copies of them give."""
    for kernel in KERNELS[name, "cupy"]:
        sample = Sample(((1, 1, 5, 8),) * 3) if name == "attention" else max(SAMPLES[name], key=most_axes)
        arrays = cuda_checks.rounded_inputs(name, sample.arrays(np.float32), dtype)
        expected = outcome(kernel, cupy, arrays, sample.options, np.ascontiguousarray, dtype)
        for layout in LAYOUTS if expected else []:
            laid = [layout(a) if isinstance(a, np.ndarray) and a.ndim else a for a in arrays]
            got = outcome(kernel, cupy, laid, sample.options, layout, dtype)
            for a, b in zip(got or [], expected):
                assert (a is None) == (b is None)
                assert a is None or error(a, b) <= cuda_checks.TOLERANCE[dtype], layout.__name__


def most_axes(sample):
    arrays = [a for a in sample.arrays(np.float32) if a is not None]
    return [np.ndim(a) for a in arrays], -np.size(arrays[0])


def outcome(kernel, cupy, arrays, options, layout, dtype):
    """Results and gradients of a kernel, for arrays that lie as they do; None if it leaves them to the reference."""
    boxed = [strict_cupy.ndarray(a) if isinstance(a, np.ndarray) else a for a in arrays]
    with cuda_checks.in_precision(dtype), cuda_host.running():
        if not kernel.supports(*boxed):
            return None
        needs = list(map(cuda_checks.is_floats, arrays))
        found = []
        for rows in (slice(None), slice(1)):
            node = kernel(cupy, needs)
            results = node.forward(*boxed, **options)
            several = isinstance(results, tuple)
            results = results if several else (results,)
            douts = [np.random.default_rng(3).standard_normal(r.shape).astype(r.dtype) for r in results]
            if rows == slice(1):
                douts = [np.broadcast_to(d[:1] if d.ndim else d, d.shape) for d in douts]
                douts = [d.copy() for d in douts] if layout is np.ascontiguousarray else douts
            else:
                douts = [layout(d) if d.ndim else d for d in douts]
            douts = tuple(map(strict_cupy.ndarray, douts))
            gradients = node.backward(douts if several else douts[0])
            found += [cuda_checks.host(r) for r in results]
            found += [cuda_checks.host(cuda_checks.settled(g)) if need else None for g, need in zip(gradients, needs)]
        return found


# -- planted faults ----------------------------------------------------------------------------------------------------

BARRIER = "    __syncthreads();\n    for (int j = threadIdx.x; j < 2 * C"
SHARED = "race in shared|nothing has written"
ANY = "race in shared|no multiple|beyond the end|outside"
SUMS = "    __syncthreads();\n    if (warp > 0"
FAULTS = {  # what it is: (file, what is replaced in it, by what, what the checks say)
    "a barrier is left out": ("layernorm", BARRIER, BARRIER.partition("\n")[2], SHARED),
    "one row too many": ("layernorm", "row < rows; row += gridDim.x", "row <= rows; row += gridDim.x", "outside"),
    "blocks share a sum": ("layernorm", "partial[(size_t)blockIdx.x * 2 * C + j]", "partial[j]", "race in an array"),
    "sums do not begin at 0": ("layernorm", "store_part(dbias + j, part);\n    });", "});", "nothing has written"),
    "the columns' barrier": ("column_sums", SUMS, SUMS.partition("\n")[2], SHARED),
    "16 bytes anywhere": ("layernorm", "if (wide) backward<8>(x,", "if (1) backward<8>(x,", ANY),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("reverse", [False, True])
def test_planted_faults_are_found(fault, reverse, cupy):
    file, old, new, message = FAULTS[fault]
    C = 20 if fault == "16 bytes anywhere" else 24
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((9, C), (C,), (C,))]
    with cuda_checks.planted(file, old, new), pytest.raises(KernelFault, match=message):
        cuda_checks.run_kernel(LayerNormCUDA, cupy, arrays, {}, "float32", [np.ones((9, C), np.float32)], reverse)


def test_a_fault_names_its_line():
    code = """extern "C" __global__ void kernel(float* x, int n) {
    x[threadIdx.x] = 1;
    x[n + threadIdx.x] = 2;
}
"""
    with pytest.raises(KernelFault, match=r"kernel: thread 0 of block 0 writes 4 bytes outside.*kernels.cu:3"):
        cuda_host.RawModule(code=code).get_function("kernel")((1,), (32,), (np.zeros(32, np.float32), np.int32(40)))


# -- ops without a kernel ----------------------------------------------------------------------------------------------


def test_an_op_without_a_kernel_says_so_once(cupy):
    lines = []
    ops.announce_missing_kernels(lines.append)
    try:
        x = Tensor(np.ones((2, 3), np.float32), device="cuda")
        y = Tensor(np.ones((2, 3)), device="cuda")
        for _ in range(2):
            ops.var(x)
            ops.reshape(ops.transpose(x), (6,))
            ops.layernorm(x, x[0], x[0])
            ops.layernorm(y, y[0], y[0])
            with kernels("reference"):
                ops.std(x)
    finally:
        watch_missing_kernels(None)
    assert [line.split()[1] for line in lines] == ["var:", "layernorm:"]
    assert "it has no kernel" in lines[0] and "its kernel does not take these arrays" in lines[1]


def test_the_checks_count_kernels_and_products_without_the_host_as_on_a_gpu(cupy, monkeypatch):
    elsewhere = SimpleNamespace(cupy=None, no_sync=strict_cupy.no_sync)
    monkeypatch.setattr(cuda_checks, "strict_cupy", elsewhere)
    with cuda_checks.work_on(cupy, False) as started:
        x = Tensor(np.ones((3, 8), np.float32), device="cuda")
        ops.layernorm(x, x[0], x[0])
        ops.matmul(x, x.T)
    assert started == ["layernorm_forward", "a product"]
    assert cuda_checks.check_kernel(LayerNormCUDA, OPS["layernorm"], cupy, SAMPLES["layernorm"][0], "float32")
