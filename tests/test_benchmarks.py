"""The benchmarks run and print what they should; their figures are not judged here."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
import strict_cupy

from benchmarks import gpu, train_side
from models.config import GPTConfig
from tinygrad2.dispatch import kernels
from tinygrad2.system import processor

pytest.importorskip("numba", reason="Numba is not installed: there are no kernels to time")

ROOT = pathlib.Path(__file__).parents[1]


def run(module, flags):
    command = [sys.executable, "-m", f"benchmarks.{module}", *flags.split()]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_train_compares_the_losses_and_prints_a_ratio():
    out = run("train", "--model demo --batch-size 2 --seq-len 16 --against reference --turns 2 --steps 1 --warmup 1")
    assert "GFLOP/s in matrix products" in out and "GB/s memory bandwidth" in out
    ours, reference = (line for line in out.splitlines() if line.startswith(("ours ", "reference ")))
    assert "x1.00 (1.00 .. 1.00)" in ours and " MB " in ours and "% of peak" in ours
    assert float(reference.split()[-1]) < 1e-4  # the losses


@pytest.mark.slow
def test_ops_times_references_and_kernels():
    out = run("ops", "--only layernorm,linear --turns 1 --seconds 0.01")
    lines = [line for line in out.splitlines() if line.startswith(("layernorm", "linear"))]
    assert len(lines) == 4
    assert all("GB/s" in line for line in lines[:2]) and all("GFLOP/s" in line for line in lines[2:])


@pytest.mark.slow
def test_the_ladder_of_products(tmp_path):
    picture = tmp_path / "roofline.png"
    drawn = importlib.util.find_spec("matplotlib") is not None
    out = run("ops", "gemm --ladder --turns 1 --seconds 0.01" + (f" --picture {picture}" if drawn else ""))
    rungs = [line.split()[0] for line in out.splitlines() if line.endswith(("e-07", "e-03"))]
    assert rungs[:4] == ["three_loops", "blocked", "packed", "vector"]
    assert "vector peak" in out and "L1 cache" in out
    assert not drawn or picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_decode_times_float32_and_int8():
    out = run("decode", "--model demo --prompt-len 4 --new-tokens 4 --turns 1 --against=")
    assert "\nours  " in out and "\nours-int8  " in out and "\nours-bfloat16  " in out and "ms a token" in out


def test_decode_measures_what_int8_costs(tmp_path):
    from models import GPT, GPTConfig
    from tinygrad2.io.weights import save_weights
    from tinygrad2.tokenizers.tokenizer import Tokenizer

    text = "the cat sat on the mat. the dog sat on the cat. " * 20
    (tmp_path / "text.txt").write_text(text)
    tokenizer = Tokenizer.train(text, 270)
    model = GPT(GPTConfig(block_size=16, vocab_size=270, n_layer=2, n_head=2, n_embd=32), seed=0)
    weights = tmp_path / "w.bin"
    save_weights(weights, model.state_dict(), model.config.to_dict(), tokenizer.to_json(), {})
    out = run("decode", f"--perplexity {weights} {tmp_path / 'text.txt'}").splitlines()
    float32, bfloat16, int8 = (float(line.split()[4]) for line in out)
    assert [line.split()[0] for line in out] == ["float32", "bfloat16", "int8"]
    assert 200 < float32 < 350 and abs(int8 / float32 - 1) < 0.01  # untrained: about the vocabulary
    assert abs(bfloat16 / float32 - 1) < 0.01


def test_an_unknown_side_is_refused():
    command = [sys.executable, "-m", "benchmarks.train", "--against", "jax"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 2 and "unknown side(s) jax" in result.stderr


def test_gpu_without_a_gpu_is_one_line(tmp_path):
    (tmp_path / "cupy.py").write_text("raise ImportError('planted')")
    result = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True,
                            timeout=600, env={**os.environ, "PYTHONPATH": str(tmp_path)})  # fmt: skip
    assert result.returncode == 2 and re.fullmatch(r"benchmarks\.gpu: device 'cuda' needs CuPy: .*\n", result.stderr)
    assert result.stdout == ""


def test_gpu_counts_passed_and_failed_tests_and_keeps_their_messages(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('n', [1, 2, 3])\n"
        "def test_it(n):\n"
        "    if n == 3: pytest.skip('no')\n"
        "    assert n == 1\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={tmp_path}/x.xml", str(tmp_path)]
    subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=600)
    counts, errors = gpu.read_junit(tmp_path / "x.xml")
    assert counts == dict(passed=1, failed=1, skipped=1)
    assert len(errors) == 1 and errors[0].startswith("test_it[2]: ") and "assert 2 == 1" in errors[0]


def test_a_step_of_the_gpu_side_equals_the_cpu(monkeypatch):
    """On the stand-in for CuPy."""
    strict_cupy.install(monkeypatch)
    monkeypatch.setattr("tinygrad2.dispatch._default", "auto")    # which our_trainer changes
    model = GPTConfig(block_size=8, vocab_size=50, n_layer=1, n_head=2, n_embd=16).to_dict()
    config = dict(model=model, batch_size=2, seq_len=8, seed=1, recompute=False)
    with kernels("reference"):
        losses = [
            [step(*train_side.tokens(config, i)) for i in range(3)]
            for step in (train_side.our_trainer(config | {"device": d}, "reference") for d in ("cpu", "cuda"))
        ]
    assert losses[0] == losses[1]


def test_gpu_rows_compare_sides_with_the_same_products():
    ms = {"ours": [[10.0, 12.0]], "ours-tf32": [[5.0, 5.0]], "torch-tf32": [[4.0, 6.0]]}
    losses = {"ours": [1.0, 2.0], "ours-tf32": [1.0, 2.0], "torch-tf32": [1.0, 2.5]}
    peaks = dict(float32=50e12, tf32=400e12, bfloat16=800e12, bandwidth=4e12)
    row = gpu.step_row("torch-tf32", 4, 8, ms, losses, dict.fromkeys(ms, 7e9), flops=1e12, peaks=peaks)
    assert (row["median_ms"], row["min_ms"], row["torch_over_ours"], row["losses_apart"]) == (5.0, 4.0, 1.0, 0.5)
    assert (row["tokens_per_s"], row["peak_memory_mb"], row["share_of_tf32_peak"]) == (6400, 7000, 0.5)


@pytest.mark.parametrize("name", ["train", "ops", "decode", "tokenizer", "gpu"])
def test_committed_rows_have_machine_and_versions(name):
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    runs = json.loads(path.read_text())
    assert runs and all({"date", "cpu", "load", "versions", "rows"} <= set(run) and run["rows"] for run in runs)
    table = path.with_suffix(".csv").read_text().splitlines()
    assert len(table) == 1 + sum(len(run["rows"]) for run in runs)


@pytest.mark.parametrize("about, expected", [
    ("model name: AMD EPYC\nvendor_id: AuthenticAMD\ncpu family: 25\nflags: avx2 fma", "AMD EPYC (Zen 3; AVX2), "),
    ("model name: AMD EPYC\nvendor_id: AuthenticAMD\ncpu family: 25\nflags: avx2 avx512f avx512_bf16",
     "AMD EPYC (Zen 4; AVX512-BF16, AVX-512, AVX2), "),
    ("model name: Xeon\nvendor_id: GenuineIntel\ncpu family: 6\nflags: avx2 avx512f amx_bf16",
     "Xeon (AMX, AVX-512, AVX2), "),
    ("processor: 0\nFeatures: fp asimd", "(NEON), "),
])  # fmt: skip
def test_a_processor_is_named_with_its_generation_and_units(about, expected, monkeypatch):
    fields = dict(line.split(": ") for line in about.splitlines())
    monkeypatch.setattr(processor, "_about", lambda: fields)
    assert expected in processor.cpu_name()
