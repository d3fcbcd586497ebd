"""Faults planted in the CUDA kernels are found by the checks that all kernels pass, whatever order threads run in."""

import cuda_checks
import fake_cublaslt
import numpy as np
import pytest
import strict_cupy
from cuda_host import needs_compiler, running
from samples import Sample, bfloat16, int8, integers, positive

from ops.kernels.cuda.column_sums import bias_gradient
from ops.kernels.cuda.sorted_ids import sorted_keys
from tinygrad2.dispatch import KERNELS, OPS

pytestmark = needs_compiler
pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: bfloat16 on a GPU needs it")

OUTSIDE, SHARED, DIFFERS = "outside|beyond the end", "race in shared|nothing has written", "differs from the reference"
BETWEEN_BLOCKS = "race in an array"
DROPOUT = "dropout", ((33, 250),), dict(p=0.25, key=3, first=5)
EMBEDDING = "embedding", ((6, 24), integers(3, 50, below=4))
CROSS_ENTROPY = "cross_entropy", ((3, 300), integers(3, below=300))
INT8 = "linear_int8", ((3, 32), int8(5, 32), positive(5), (5,))
LONG_ROWS = "cross_entropy", ((3, 16400), integers(3, below=300))

# What it is: (op, shapes, perhaps options, file, what is replaced in it, by what, what the checks say).
FAULTS = {
    "add: one operand twice": (
        "add", ((3, 7), (3, 7)), "add", "values[i] += others[i]", "values[i] += values[i]", DIFFERS),
    "add: positions do not begin again": (
        "add", ((5, 3, 8), (3, 8)), "add", "first % period, period", "first, n", OUTSIDE),
    "add: the tail is written by 16 bytes": (
        "add", ((3, 7), (3, 7)), "elements", "first + ELEMENTS <= n) return store", "first < n) return store", OUTSIDE),
    "tanh: the wrong op": (
        "tanh", ((3, 7),), "elementwise", "case 2: return run<Tanh>", "case 2: return run<Exp>", DIFFERS),
    "sigmoid: its slope is another one": (
        "sigmoid", ((3, 7),), "elementwise", "d * out * (1 - out)", "d * out", DIFFERS),
    "mul: gradients are exchanged": (
        "mul", ((3, 7), (3, 7)), "elementwise_pairs", "make_float2(d * b, d * a)", "make_float2(d * a, d * b)",
        DIFFERS),
    "div: both gradients in one array": (
        "div", ((3, 7), positive(3, 7)), "elementwise_pairs", "if (db) store_elements(db", "if (db) store_elements(da",
        DIFFERS),
    "gelu: the tail is not looked at": (
        "gelu", ((3, 7),), "elements", "first + i < n ? to_float", "1 ? to_float", OUTSIDE),
    "gelu: the last elements by 16 bytes": (
        "gelu", ((3, 7),), "elements", "first + ELEMENTS <= n) return load", "first < n) return load", OUTSIDE),
    "gelu: threads overlap": (
        "gelu", ((40, 8),), "elements", "threadIdx.x) * ELEMENTS", "threadIdx.x) * (ELEMENTS - 4)", BETWEEN_BLOCKS),
    "gelu: a wrong sign": (
        "gelu", ((3, 7),), "gelu", "s + value * (s * rest)", "s - value * (s * rest)", DIFFERS),
    "gelu_erf: a factor is forgotten": (
        "gelu_erf", ((3, 7),), "gelu", "(RSQRT2PI * __expf", "(__expf", DIFFERS),
    "cross_entropy: the target is read after it is overwritten": (
        *CROSS_ENTROPY, "cross_entropy", "counts ? logf(both.y) - (score",
        "counts ? logf(both.y) - (to_float(dz[target + blockIdx.x * stride])", BETWEEN_BLOCKS),
    "cross_entropy: the sum is not scaled down": (
        *LONG_ROWS, "softmax.cuh", "total *= __expf(largest - top);", "", DIFFERS),
    "cross_entropy: the tail has scores of 0": (
        *CROSS_ENTROPY, "softmax.cuh", "wide, x, __uint_as_float(0xff800000u))", "wide, x)", DIFFERS),
    "cross_entropy: the last elements are left out": (
        *CROSS_ENTROPY, "cross_entropy", "j < V; j += blockDim.x", "j <= V - 8; j += blockDim.x", DIFFERS),
    "cross_entropy: the barrier in a sum": (
        *CROSS_ENTROPY, "common", "x;\n    __syncthreads();\n    float total", "x;\n    float total", SHARED),
    "cross_entropy: the barrier behind a largest score": (
        *CROSS_ENTROPY, "common", "largest = fmaxf(largest, scratch[warp]);\n    __syncthreads();",
        "largest = fmaxf(largest, scratch[warp]);", SHARED),
    "cross_entropy: one row too many in the mean": (
        *CROSS_ENTROPY, "cross_entropy", "n < rows; n += blockDim.x", "n <= rows; n += blockDim.x", OUTSIDE),
    "dropout: positions begin at 0 in each block": (
        *DROPOUT, "dropout.cu", "hash_start(key[0], first_position + first)",
        "hash_start(key[0], first_position + first % 2048)", DIFFERS),
    "dropout: some bits are not mixed": (*DROPOUT, "dropout.cuh", "z >> 27", "z >> 26", DIFFERS),
    "dropout: one position further": (*DROPOUT, "dropout.cuh", "(position + 1)", "(position + 2)", DIFFERS),
    "softmax: a block starts in the next row": (
        "softmax", ((3, 300),), "softmax.cu", "float2 both = largest_and_sum(x + first,",
        "float2 both = largest_and_sum(x + first + 1,", f"{OUTSIDE}|{DIFFERS}"),
    "softmax: the sum is of one thread": (
        "softmax", ((3, 300),), "softmax.cu", "total = block_sum(total, scratch);", "", DIFFERS),
    "log_softmax: the sum is of the wrong kind": (
        "log_softmax", ((3, 300),), "softmax.cu", "logarithm ? ds[i] : ds[i] * values[i]", "ds[i] * values[i]",
        DIFFERS),
    "cross_entropy: an ignored row has no barrier": (
        "linear_cross_entropy", ((9, 4), (5, 4), integers(9, below=2)), dict(ignore_index=1), "cross_entropy",
        "exists = counts && target", "exists = target", BETWEEN_BLOCKS),
    "embedding: a row is added by several blocks": (
        *EMBEDDING, "embedding", "(first > 0 && keys[first - 1] >> 32 == id)", "first == id", BETWEEN_BLOCKS),
    "embedding: the barrier before the positions": (
        *EMBEDDING, "embedding", "*count = 0;\n        __syncthreads();", "*count = 0;", SHARED),
    "embedding: the barrier behind the positions": (
        *EMBEDDING, "embedding", "        __syncthreads();\n    }\n    if (j >= C)", "    }\n    if (j >= C)", SHARED),
    "embedding: the last position's neighbour": (
        *EMBEDDING, "embedding", "k + 1 >= n_ids || ", "", OUTSIDE),
    "embedding: columns beyond the last": (
        *EMBEDDING, "embedding", "    if (j >= C) return;\n    float* out", "    float* out",
        f"{OUTSIDE}|{BETWEEN_BLOCKS}"),
    "embedding: what was there is lost": (
        *EMBEDDING, "embedding", "total[i] += x[i];\n    }\n    store", "total[i] += 0;\n    }\n    store",
        "added, a gradient is another"),
    "linear_cross_entropy: the gradient has one factor": (
        "linear_cross_entropy", ((3, 8), (7, 8), integers(3, below=7)), "cross_entropy",
        "by = factor[0] * share[0]", "by = factor[0]", DIFFERS),
    "linear_int8: a row of weights too many": (
        *INT8, "row_products", "if (o >= O) return;", "if (o > O) return;", OUTSIDE),
    "linear_int8: a row too many": (
        *INT8, "row_products", "            if (r < rows) {", "            {", OUTSIDE),
    "linear_int8: a row too many is written": (
        *INT8, "row_products", "lane == 0 && r < rows", "lane == 0", OUTSIDE),
    "linear_int8: by 16 bytes anywhere": (
        "linear_int8", ((3, 36), int8(5, 36), positive(5)), "row_products", "if (!wide) multiply<8, 1>",
        "if (0) multiply<8, 1>", f"{OUTSIDE}|no multiple"),
    "linear_int8: the scale of another row": (
        *INT8, "row_products", "scale[o] : 1", "scale[0] : 1", DIFFERS),
    "linear_int8: a part of each row is left out": (
        "linear_int8", ((1, 1040), int8(5, 1040), positive(5)), "row_products", "i < I; i += 32 * N",
        "i < I; i += 33 * N", DIFFERS),
    "linear_int8: the end of a row that is written out": (
        "linear_int8", ((9, 36), int8(5, 36), positive(5)), "row_products", "i < I; i += blockDim.x) set",
        "i <= I; i += blockDim.x) set", f"{OUTSIDE}|{BETWEEN_BLOCKS}"),
    "linear_bfloat16: the bias is forgotten": (
        "linear_bfloat16", ((3, 40), bfloat16(7, 40), (7,)), "row_products", "bias ? bias[o] : 0", "0", DIFFERS),
}  # fmt: skip


@pytest.fixture
def cupy(monkeypatch):
    cupy = strict_cupy.install(monkeypatch)
    fake_cublaslt.install(monkeypatch)
    return cupy


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("reverse", [False, True])
def test_a_planted_fault_is_found(fault, reverse, cupy):
    op, shapes, *options, file, old, new, message = FAULTS[fault]
    (kernel,) = KERNELS[op, "cupy"]
    with cuda_checks.planted(file, old, new), pytest.raises(AssertionError, match=message):
        cuda_checks.check_kernel(kernel, OPS[op], cupy, Sample(shapes, *options), "float32", (reverse,))


CAST_FAULTS = {
    "not rounded to nearest": ("bits + 0x7fffu + ((bits >> 16) & 1u)", "bits", "bfloat16"),
    "ties are rounded up": ("0x7fffu + ((bits >> 16) & 1u)", "0x8000u", "bfloat16"),
    "NaN becomes infinite": ("> 0x7f800000u) return 0x7fff", "> 0x7f800000u) return 0x7f80", "bfloat16"),
}


@pytest.mark.parametrize("fault", CAST_FAULTS)
def test_a_fault_in_a_cast_is_found(fault, cupy):
    old, new, dtype = CAST_FAULTS[fault]
    with cuda_checks.planted("common", old, new), pytest.raises(AssertionError, match="casts"):
        cuda_checks.check_casts(cupy, dtype)


COLUMN_FAULTS = {
    "the barrier": ("    __syncthreads();\n    int own", "    int own", SHARED),
    "blocks of rows overlap": ("partial[(size_t)blockIdx.y * columns + j]", "partial[j]", BETWEEN_BLOCKS),
    "a warp takes rows of the next block": ("row < last; row += 8", "row < rows; row += 8", DIFFERS),
    "columns beyond the last": ("32 * N || j >= columns) return", "32 * N) return", OUTSIDE + "|" + BETWEEN_BLOCKS),
}  # fmt: skip


@pytest.mark.parametrize("fault", COLUMN_FAULTS)
@pytest.mark.parametrize("reverse", [False, True])
def test_a_fault_in_the_sums_of_columns_is_found(fault, reverse, cupy):
    old, new, message = COLUMN_FAULTS[fault]
    rows = np.random.default_rng(0).standard_normal((70, 40)).astype(np.float32)
    with cuda_checks.planted("column_sums", old, new), pytest.raises(AssertionError, match=message):
        with running(reverse=reverse):
            got = bias_gradient(cupy, cupy.asarray(rows)).copy().get()
        assert np.allclose(got, rows.sum(0), atol=1e-4), DIFFERS


SORT_FAULTS = {
    "a barrier between the steps": ("            __syncthreads();\n            int i", "            int i", SHARED),
    "the barrier before keys are written": ("    __syncthreads();\n    for (int i = threadIdx.x; i < RUN && first",
                                            "    for (int i = threadIdx.x; i < RUN && first", SHARED),
    "keys beyond the last": ("i < RUN && first + i < n_ids; i", "i < RUN; i", OUTSIDE),
    "the other run is longer": ("end = min(other + length, n)", "end = min(other + 2 * length, n)",
                                f"{OUTSIDE}|{BETWEEN_BLOCKS}|{DIFFERS}"),
    "equal keys": ("(exists ? id : -1) * 4294967296LL + n", "(exists ? id : -1) * 4294967296LL", BETWEEN_BLOCKS),
}


@pytest.mark.parametrize("fault", SORT_FAULTS)
@pytest.mark.parametrize("reverse", [False, True])
def test_a_fault_in_the_sorting_of_positions_is_found(fault, reverse, cupy):
    old, new, message = SORT_FAULTS[fault]
    ids = np.random.default_rng(0).integers(0, 9, 2500)
    with cuda_checks.planted("sorted_ids", old, new), pytest.raises(AssertionError, match=message):
        with running(reverse=reverse):
            keys = sorted_keys(cupy, cupy.asarray(ids), 9).get()
        assert np.array_equal(keys, np.sort(ids * 2**32 + np.arange(2500))), DIFFERS
