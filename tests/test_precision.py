"""--matmul-precision: what each precision computes, by reference implementations and kernels, and where it holds."""

import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from test_train import SMALL, TEXT

import ops
import train_gpt2
from ops.bfloat16 import can_be_split, matmul, operand
from ops.products import PARTS
from tinygrad2 import Tensor
from tinygrad2.dispatch import KERNELS, OPS, kernels
from tinygrad2.distributed.mpirun import have_mpi
from tinygrad2.distributed.world import World
from tinygrad2.precision import PRECISIONS, ROUNDED, matmul_precision, precision, use_matmul_precision
from tinygrad2.recompute import recompute

ALL = (*PRECISIONS, ROUNDED)
MOST = {"highest": 1e-6, "high": 5e-6, "medium": 3e-3, "bfloat16": 3e-3}  # of the root mean square, see tests below


def samples(rng):
    """{op: (arrays, options)}: odd sizes, float32."""

    def normal(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    ids = rng.integers(0, 61, (3, 7))
    return {
        "linear": ((normal(3, 7, 33), normal(33, 50), normal(50)), {}),
        "matmul": ((normal(4, 17, 33), normal(33, 50)), {}),
        "mlp": ((normal(3, 7, 33), normal(33, 132) / 6, normal(132), normal(132, 50) / 12, normal(50)), {}),
        "linear_cross_entropy": ((normal(3, 7, 33), normal(61, 33) / 6, ids), {"ignore_index": -1}),
    }


def run(name, arrays, options, mode="auto", dtype=np.float32):
    """(forward, gradients) of an op on arrays as they are in `dtype`, with random weights for a loss."""
    inputs = [Tensor(a.astype(dtype), requires_grad=True) if a.dtype.kind == "f" else a for a in arrays]
    with kernels(mode):
        out = getattr(ops, name)(*inputs, **options)
        dout = np.random.default_rng(5).standard_normal(out.shape).astype(dtype)
        out.backward(dout)
    return out.numpy(), [x.grad for x in inputs if isinstance(x, Tensor)]


def rms(difference, exact):
    """The root of the mean square of a difference, relative to that of the exact value."""
    return float(np.sqrt(np.mean(np.square(difference)) / np.mean(np.square(exact))))


NAMES = list(samples(np.random.default_rng(0)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("asked", ALL)
@pytest.mark.parametrize("mode", ["auto", "reference"])
def test_errors_of_each_op_are_those_permitted(name, asked, mode):
    arrays, options = samples(np.random.default_rng(0))[name]
    exact = run(name, arrays, options, "reference", np.float64)
    with matmul_precision(asked):
        out, gradients = run(name, arrays, options, mode)
    largest = 0
    for got, want in zip([out, *gradients], [exact[0], *exact[1]]):
        largest = max(largest, rms(got - want, want))
    assert largest < 2.5 * MOST[asked]                            # an mlp has two products in a row
    if asked == ROUNDED or (mode == "reference" and asked != "highest"):
        assert largest > MOST[asked] / 20, "nothing was rounded"


@pytest.mark.parametrize("name", NAMES)
def test_kernels_round_what_the_reference_rounds(name):
    """To a few float32 roundings of sums: an error of bfloat16 would be a thousand times as large."""
    arrays, options = samples(np.random.default_rng(1))[name]
    with matmul_precision(ROUNDED):
        reference, fast = run(name, arrays, options, "reference"), run(name, arrays, options)
    for got, want in zip([fast[0], *fast[1]], [reference[0], *reference[1]]):
        # a sum that differs in its last bit may be rounded to the other neighbour before the next product
        assert rms(got - want, want) < (1e-6 if name in ("linear", "matmul") else 5e-4)


@pytest.mark.parametrize("name", NAMES)
def test_highest_is_float32_without_any_change(name):
    arrays, options = samples(np.random.default_rng(0))[name]
    plain = run(name, arrays, options, "reference")
    with matmul_precision("highest"):
        same = run(name, arrays, options, "reference")
    assert plain[0].tobytes() == same[0].tobytes()
    assert [g.tobytes() for g in plain[1]] == [g.tobytes() for g in same[1]]


@pytest.mark.parametrize("asked", ALL)
def test_float64_is_never_rounded(asked):
    for name, (arrays, options) in samples(np.random.default_rng(0)).items():
        exact = run(name, arrays, options, dtype=np.float64)
        with matmul_precision(asked):
            got = run(name, arrays, options, dtype=np.float64)
        assert exact[0].tobytes() == got[0].tobytes()


def test_the_words_are_checked():
    for function in (matmul_precision, use_matmul_precision):
        with pytest.raises(ValueError, match="must be one of highest, high, medium, bfloat16, float16, not 'low'"):
            function("low")
    assert precision() == "highest" and set(PARTS) == set(ALL)


def test_a_default_for_all_threads_and_blocks_for_one():
    seen = []
    use_matmul_precision("medium")
    try:
        with matmul_precision("high"):
            thread = threading.Thread(target=lambda: seen.append(precision()))
            thread.start()
            thread.join()
            assert precision() == "high" and seen == ["medium"]
        assert precision() == "medium"
    finally:
        use_matmul_precision("highest")


@pytest.mark.parametrize("mode", ["auto", "reference"])
@pytest.mark.parametrize("again", [False, True])
def test_backward_has_the_precision_of_its_forward(mode, again):
    (x, weight, bias), _ = samples(np.random.default_rng(0))["linear"]

    def layer(x):
        return ops.linear(ops.linear(x, w, b), w.transpose())

    gradients = []
    with kernels(mode):
        for around_backward in (ROUNDED, "highest"):
            w, b, start = (Tensor(a, requires_grad=True) for a in (weight, bias, x))
            with matmul_precision(ROUNDED):
                out = recompute(layer, start) if again else layer(start)
            with matmul_precision(around_backward):
                out.sum().backward()
            gradients.append((start.grad.tobytes(), w.grad.tobytes()))
    assert gradients[0] == gradients[1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.4e38, 1e-40, 1e-36])
@pytest.mark.parametrize("asked", ALL)
def test_special_values(asked, value):
    """NaN and infinity go where float32 has them; the largest numbers are infinite in bfloat16."""
    rng = np.random.default_rng(0)
    for place in (0, 1):
        pair = [rng.uniform(0.5, 1, shape).astype(np.float32) for shape in ((13, 18), (18, 50))]
        pair[place][3, 5] = value
        rounds = PARTS[asked] == 1
        with np.errstate(invalid="ignore", over="ignore"):
            plain = np.matmul(*[operand(np, m) if rounds else m for m in pair])
            for mode in ("auto", "reference"):
                with matmul_precision(asked), kernels(mode):
                    out = ops.linear(*map(Tensor, pair)).numpy()
                exact = plain if asked == ROUNDED or mode == "reference" else np.matmul(*pair)
                permitted = [exact, plain] if rounds else [exact]
                assert any(np.array_equal(np.isnan(out), np.isnan(p)) for p in permitted)
                assert any(np.array_equal(np.isinf(out), np.isinf(p)) for p in permitted)


def test_products_that_cannot_be_split_are_float32():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((5, 30), dtype=np.float32), rng.standard_normal((30, 7), dtype=np.float32)
    assert can_be_split(np, a, b) and can_be_split(np, a[None], b) and can_be_split(np, a[:0], b)
    assert can_be_split(np, a * 0, b) and can_be_split(np, a[0], b[:, 0])
    for tiny in (a * 1e-37, a * np.float32(1e-16)):
        assert not can_be_split(np, tiny, b * np.float32(1e-16))
    with matmul_precision("high"), kernels("reference"):
        out = ops.matmul(Tensor(a * np.float32(1e-36)), Tensor(b)).numpy()
    assert out.tobytes() == ((a * np.float32(1e-36)) @ b).tobytes()


def test_the_reference_is_the_sum_of_products_of_parts():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((5, 30), dtype=np.float32), rng.standard_normal((30, 7), dtype=np.float32)
    with kernels("reference"):
        for asked, parts in PARTS.items():
            with matmul_precision(asked):
                out = ops.matmul(Tensor(a), Tensor(b)).numpy()
            assert out.tobytes() == (matmul(np, a, b, parts) if parts else a @ b).tobytes()


def test_every_op_with_products_takes_part():
    """linear_int8 has products of its own, attention's are inside its loops: these are float32."""
    assert set(NAMES) == {"linear", "matmul", "mlp", "linear_cross_entropy"} <= set(OPS)
    assert ("matmul", "numpy") not in KERNELS                     # float32, where that is permitted


# -- kernels -----------------------------------------------------------------------------------------------------------

needs_kernels = pytest.mark.skipif(not ops.have_cpu_kernels(), reason="Numba is not installed")


@needs_kernels
def test_arrays_are_rounded_to_the_bits_of_the_reference():
    from ops.kernels.cpu.bfloat16 import rounded

    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 60 * 70, dtype=np.uint64).astype(np.uint32)
    bits[:8] = [0, 1 << 31, 1, 0x7F800000, 0xFF800000, 0x7F800001, 0x007FFFFF, 0x7F7FFFFF]
    x = bits.view(np.float32).reshape(60, 70)
    for view in (x, x.T, x[::-2, ::3], x[3:50, 5:40], x[3:50, 5:40].T, x[:1], x[:, :1], x[:0]):
        got = rounded(view)
        with np.errstate(invalid="ignore"):
            want = operand(np, np.ascontiguousarray(view))
        assert got.shape == view.shape and (np.ascontiguousarray(got).view(np.uint32) == want.view(np.uint32)).all()
        assert view.size < 2 or view is x[::-2, ::3] or 4 in got.strides


@needs_kernels
@pytest.mark.parametrize("name", NAMES)
def test_ops_compute_with_a_kernel_of_ours(name, monkeypatch):
    """As on a processor with AMX, with the float32 kernel in the place of the one for tiles."""
    from ops.kernels.cpu import products

    calls = []

    def product(a, b, out, add=False, bias=None, kernel=None):
        calls.append(kernel)
        return own(a, b, out, add, bias, "vector")

    own = products.product
    monkeypatch.setattr(products, "tile_kernel", lambda precision: f"tiles for {precision}")
    for module in (products, sys.modules["ops.kernels.cpu.linear"]):
        monkeypatch.setattr(module, "product" if module is products else "gemm_product", product)
    arrays, options = samples(np.random.default_rng(0))[name]
    exact = run(name, arrays, options, "reference", np.float64)
    for asked in ALL:
        calls.clear()
        with matmul_precision(asked):
            out, gradients = run(name, arrays, options)
        assert set(calls) == ({f"tiles for {asked}"} if name != "matmul" else set())
        if name != "matmul" or asked != ROUNDED:
            assert rms(out - exact[0], exact[0]) < 2e-6
            most = 4e-3 if asked == ROUNDED else 2e-6             # activations have waited as bfloat16
            assert max(rms(got - want, want) for got, want in zip(gradients, exact[1])) < most


@needs_kernels
def test_few_rows_are_float32_unless_rounding_was_ordered(monkeypatch):
    from ops.kernels.cpu import products, skinny_gemm

    monkeypatch.setattr(products, "tile_kernel", lambda precision: "amx")
    monkeypatch.setattr(products.target, "beats_blas", lambda: False)
    many, few = np.ones((50, 40), np.float32), np.ones((skinny_gemm.MOST, 40), np.float32)
    for asked in PRECISIONS:
        assert products.kernel_for(many, many.T, asked) == "amx" and products.kernel_for(few, many.T, asked) is None
    assert products.kernel_for(few, many.T, ROUNDED) == "amx"


@needs_kernels
def test_float32_by_our_kernel_where_it_is_faster_than_blas(monkeypatch):
    from ops.kernels.cpu import products

    monkeypatch.setattr(products, "tile_kernel", lambda precision: None)
    for faster, shape, kernel in ((True, (16, 96, 96), "avx512"), (False, (16, 96, 96), None),
                                  (True, (15, 96, 96), None), (True, (16, 95, 96), None), (True, (16, 96, 95), None)):
        monkeypatch.setattr(products.target, "beats_blas", lambda faster=faster: faster)
        (M, K, N) = shape
        a, b = np.ones((M, K), np.float32), np.ones((K, N), np.float32)
        for asked in PRECISIONS:
            assert products.kernel_for(a, b, asked) == kernel
        assert products.kernel_for(a, b, ROUNDED) is None
        out = products.gemm(a, b, np.empty((M, N), np.float32), scale=0.5)
        assert (out == K / 2).all()                               # by BLAS, which takes the factor


@needs_kernels
@pytest.mark.parametrize("kernel", ["amx x6", "amx x3", "amx"])
def test_products_of_parts_are_for_long_axes(monkeypatch, kernel):
    from ops.kernels.cpu import products

    monkeypatch.setattr(products, "tile_kernel", lambda precision: kernel)
    monkeypatch.setattr(products.target, "beats_blas", lambda: False)
    for shape in ((256, 256, 256), (255, 256, 300), (300, 255, 256), (256, 300, 255)):
        (M, K, N), parts = shape, kernel != "amx"
        a, b = np.ones((M, K), np.float32), np.ones((K, N), np.float32)
        for asked in PRECISIONS:
            assert products.kernel_for(a, b, asked) == (None if parts and min(shape) < 256 else kernel)
        assert products.kernel_for(a, b, ROUNDED) == kernel


@needs_kernels
@pytest.mark.parametrize("kernel, features, asked, line", [
    ("vector", "avx2", "highest", "highest: float32 through "),
    ("vector", "avx2", "high", "(no AMX tiles here)"),
    ("vector", "avx2", "medium", "(neither AMX tiles nor AVX512-BF16 here)"),
    ("vector", "avx2", "bfloat16", "bfloat16: operands rounded, float32 through "),
    ("avx512", "avx512bf16 avx512bw", "highest", "highest: float32 by AVX-512"),
    ("avx512", "avx512bf16 avx512bw", "medium", "(no AMX tiles here, and this AVX512-BF16 is no faster)"),
    ("avx512", "amx-tile amx-bf16 avx512bf16 avx512bw", "high", "(the system does not permit AMX tiles)"),
    ("bf16", "avx512bf16 avx512bw", "medium", "medium: one bfloat16 product by AVX512-BF16"),
    ("amx x6", "amx-tile amx-bf16", "highest", "float32, large matrices as six bfloat16 products on AMX tiles"),
    ("amx x3", "amx-tile amx-bf16", "high", "high: large matrices as three bfloat16 products on AMX tiles"),
])  # fmt: skip
def test_the_user_is_told_what_multiplies_and_why(monkeypatch, kernel, features, asked, line):
    from ops.kernels.cpu import products

    monkeypatch.setattr(products.target, "fastest", lambda precision: kernel)
    monkeypatch.setattr(products.target, "features", lambda: frozenset(features.split()))
    monkeypatch.setattr(products.target, "tiles_permitted", lambda: False)
    monkeypatch.setattr(products.target, "beats_blas", lambda: kernel == "avx512" and asked == "highest")
    products.tile_kernel.cache_clear()
    try:
        assert line in ops.describe_products("cpu", "auto", asked)
    finally:
        products.tile_kernel.cache_clear()


def test_what_is_said_without_kernels():
    assert ops.describe_products("cpu", "reference", "highest") == "highest: float32 through NumPy"
    assert ops.describe_products("cpu", "reference", "high").startswith("high: emulated, slowly, by NumPy")
    assert ops.describe_products("cuda", "reference", "highest") == "highest: float32 through CuPy"


SCRIPT = """
import numpy as np, ops
from ops.kernels.cpu.gemm import target
from tinygrad2 import Tensor
from tinygrad2.dispatch import kernels
from tinygrad2.precision import matmul_precision
rng = np.random.default_rng(0)
x, weight = (Tensor(rng.standard_normal(shape, dtype=np.float32)) for shape in ((40, 70), (70, 90)))
for name in ("high", "medium", "bfloat16"):
    with matmul_precision(name):
        out = ops.linear(x, weight).numpy()
        with kernels("reference"):
            right = ops.linear(x, weight).numpy()
    print(name, np.abs(out - right).max() < (0.2 if name == "medium" else 2e-3), "float32" in
          ops.describe_products("cpu", "auto", name))
"""


@needs_kernels
@pytest.mark.slow
def test_a_processor_without_the_features(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_CPU_NAME": "x86-64",
                   "NUMBA_CPU_FEATURES": "+sse2"}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, timeout=900)
    assert done.stdout == "high True True\nmedium True True\nbfloat16 True True\n", done.stderr[-2000:]


# -- trainings ---------------------------------------------------------------------------------------------------------


def losses(tmp_path, name, flags):
    """The losses of a training."""
    path = tmp_path / f"{name}.jsonl"
    files = ["--run-dir", str(tmp_path / name), "--weights-out", str(tmp_path / f"{name}.bin"), "--metrics", str(path)]
    assert train_gpt2.main(World(), [*flags.split(), *files]) == 0
    return np.array([json.loads(line)["loss"] for line in path.read_text().splitlines() if "loss" in line])


@pytest.mark.parametrize("steps", [pytest.param(10, marks=pytest.mark.slow), pytest.param(50, marks=pytest.mark.long)])
def test_losses_of_the_demo(tmp_path, steps):
    """Its model at GPT-2's learning rate: at its own, ten times as high, any two ways of rounding part after 25 steps
    (docs/kernels.md)."""
    curves = {}
    for asked in PRECISIONS:
        flags = (f"--steps {steps} --batch-size 4 --lr 6e-4 --kernels reference --matmul-precision {asked} "
                 "--eval-every 0 --sample-every 0 --sample-tokens 1 --checkpoint-every 0")  # fmt: skip
        curves[asked] = losses(tmp_path, asked, flags)
    assert len(curves["highest"]) == steps
    assert np.abs(curves["high"] - curves["highest"]).max() < 1e-4
    assert 1e-5 < np.abs(curves["medium"] - curves["highest"]).max() < 1e-2


@pytest.mark.slow
@pytest.mark.skipif(not have_mpi(), reason="there is no mpirun, or no mpi4py")
@pytest.mark.parametrize("mode", ["auto", "reference"])
def test_ranks_have_the_same_bits(tmp_path, monkeypatch, mode):
    from tinygrad2.commands import verify

    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT * 60)
    flags = f"--data text.txt --threads 1 --matmul-precision medium --kernels {mode}"
    assert verify.main(["ranks", *SMALL.split(), *flags.split()]) == 0
